"""Log files to tables in the log schema: JSON lines and Parquet."""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.log_schema import LOG_SCHEMA, conform
from seqroute_ray.core.logs import Origin

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
LINES_PER_BLOCK = 2048  # made a table at once; also how many lines one of a wrong type makes slow

Row = dict[str, Any]
_NUMBER_FIELDS = tuple(field.name for field in LOG_SCHEMA if field.type in (pa.int64(), pa.float64()))
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)
# Arrow cuts 1.5 to 1 where it makes integers of Python's numbers, but not when it casts.
_READ_SCHEMA = pa.schema(
    [field.with_type(pa.float64() if field.type == pa.int64() else field.type) for field in LOG_SCHEMA]
)


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file's rows in the log schema, and where they come from."""

    table: pa.Table
    origin: Origin


def read_logs(path: Path) -> LogFile:
    """Read JSON lines or Parquet, by suffix.

    A line that is no log row stands in `origin.broken` with its reason and is null where it could not be read. Raises
    DataError naming the file when there are no rows, a column is missing or of a wrong type, or it is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such log file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the log file is empty (0 bytes); it needs one row a turn")
    if path.suffix in JSON_SUFFIXES:
        table, origin = _read_json_lines(path)
    elif path.suffix == ".parquet":
        table, origin = _read_parquet(path), Origin(file=str(path))
    else:
        raise DataError(f"{path}: logs end in .parquet, {', '.join(JSON_SUFFIXES)}, got {path.suffix!r}")
    if table.num_rows == 0:
        raise DataError(f"{path}: the log file has 0 rows; it needs one row a turn")
    every_row_broken = len(origin.broken) == table.num_rows  # then no column tells anything
    return LogFile(table if every_row_broken else conform(table, str(path)), origin)


def _read_parquet(path: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        return file.read([name for name in LOG_SCHEMA.names if name in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error


def _read_json_lines(path: Path) -> tuple[pa.Table, Origin]:
    tables: list[pa.Table] = [LOG_SCHEMA.empty_table()]
    line: list[int] = []
    broken: dict[int, str] = {}
    for block in _blocks(path):
        rows, reasons = zip(*(_parse_line(text) for _, text in block), strict=True)
        try:
            table = _to_table(rows)
        except _UNFIT:  # some line has a value of another type
            rows, mended = zip(*(_drop_unfit(row) for row in rows), strict=True)
            reasons = tuple(reason or drop for reason, drop in zip(reasons, mended, strict=True))
            table = _to_table(rows)
        broken |= {len(line) + at: reason for at, reason in enumerate(reasons) if reason}
        line += [number for number, _ in block]
        tables.append(table)
    return pa.concat_tables(tables), Origin(file=str(path), line=np.array(line, dtype=np.int64), broken=broken)


def _blocks(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are not blank, some at a time."""
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        lines = ((number, line) for number, line in enumerate(file, start=1) if not line.isspace())
        while block := list(islice(lines, LINES_PER_BLOCK)):
            yield block


def _parse_line(line: bytes) -> tuple[Row, str]:
    """The object of a line, or an empty one and why there is none. NaN, which is no JSON, is read as NaN."""
    try:
        row = json.loads(line)  # not Arrow's reader: a line `null` crashes it (pyarrow 26)
    except (ValueError, RecursionError) as error:
        return {}, f"not a line of JSON: {' '.join(str(error).split())}"
    if not isinstance(row, dict):
        return {}, f"not a JSON object but a {type(row).__name__}; a log row is {{...}}"
    return row, ""


def _to_table(rows: Sequence[Row]) -> pa.Table:
    """Raises one of _UNFIT when a value is of another type than its field."""
    for name in _NUMBER_FIELDS:
        if any(isinstance(row.get(name), bool) for row in rows):  # Arrow would read 0 or 1
            raise TypeError(f"{name} must be a number")
    return pa.Table.from_pylist(rows, _READ_SCHEMA).cast(LOG_SCHEMA)


def _drop_unfit(row: Row) -> tuple[Row, str]:
    """The row without the fields that do not fit their type, and the reason that names them."""
    fit, reasons = {}, []
    for name in row.keys() & set(LOG_SCHEMA.names):
        try:
            _to_table([{name: row[name]}])
        except _UNFIT:
            reasons.append(f"{name} must be {LOG_SCHEMA.field(name).type}, got a value of another type")
        else:
            fit[name] = row[name]
    return fit, "; ".join(sorted(reasons))
