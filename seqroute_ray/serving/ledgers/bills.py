"""A provider's bill: attempt_id and cost_usd a row, in CSV, JSON Lines or Parquet; exact, without binary rounding."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.ledger import MAX_BUDGET_NUSD

COLUMNS = ("attempt_id", "cost_usd")
Row = tuple[str, Any, Any]  # its place in the file, attempt_id, cost_usd


def read_bill(path: Path) -> dict[str, int]:
    """Nano-dollars by attempt; several rows of one attempt are added. Raises DataError naming the row."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"bill {path}: must be one of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    costs_nusd = defaultdict[str, int](int)
    try:
        for place, attempt_id, cost_usd in reader(path):
            costs_nusd[_attempt_id(place, attempt_id)] += _nusd(place, cost_usd)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"bill {path}: cannot be read ({' '.join(str(error).split())})") from error
    return dict(costs_nusd)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        _require_columns(path, rows.fieldnames or ())
        for row in rows:
            yield f"{path}:{rows.line_num}", row["attempt_id"], row["cost_usd"]


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                row = json.loads(line, parse_float=Decimal)
            except json.JSONDecodeError as error:
                raise DataError(f"bill {place}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"bill {place}: must be an object with {' and '.join(COLUMNS)}")
            yield place, row.get("attempt_id"), row.get("cost_usd")


def _parquet_rows(path: Path) -> Iterator[Row]:
    table = pq.read_table(path)
    _require_columns(path, table.column_names)
    columns = (table[name].to_pylist() for name in COLUMNS)
    for number, (attempt_id, cost_usd) in enumerate(zip(*columns, strict=True), 1):
        yield f"{path}:{number}", attempt_id, cost_usd


def _require_columns(path: Path, names: Any) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"bill {path}: has no column {' and '.join(missing)}; it has {', '.join(names)}")


def _attempt_id(place: str, attempt_id: object) -> str:
    if not isinstance(attempt_id, str) or not attempt_id:
        raise DataError(f"bill {place}: attempt_id must be a text, got {attempt_id!r}")
    return attempt_id


def _nusd(place: str, cost_usd: object) -> int:
    try:
        cost_nusd = Decimal(str(cost_usd)) * 10**9
    except InvalidOperation:
        cost_nusd = Decimal("NaN")
    if isinstance(cost_usd, bool) or not cost_nusd.is_finite() or not 0 <= cost_nusd <= MAX_BUDGET_NUSD:
        raise DataError(
            f"bill {place}: cost_usd must be a number in [0, {MAX_BUDGET_NUSD / 1e9:.0f}], got {cost_usd!r}"
        )
    return int(cost_nusd.to_integral_value())
