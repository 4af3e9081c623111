"""Format `wide`: a benchmark matrix as Parquet or CSV: one row a query, two columns a model.

MODEL|quality, MODEL|cost   in [0, 1], and USD; both empty where that model's answer was not measured
text or embedding           of the query; an embedding needs Parquet
query_id                    the session, of one turn, where there is no session_id; the group where there is no group_id
session_id, turn            the query's place in a session
model                       the logged model; the one of the highest mean cost of all files where it is not named
source, part, group_id      as in the log schema

Every measured cell is an outcome; the logged model's cell is the turn's quality and cost.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.log_schema import MAX_TURN_COST_USD, codes, numbers
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.storage import Location, suffix_of
from seqroute_ray.data.formats.records import (
    Numbered,
    Record,
    csv_names,
    csv_records,
    parquet_names,
    parquet_records,
)
from seqroute_ray.data.formats.rows import LogBlock, log_blocks

_QUALITY, _COST = "|quality", "|cost"
Costs = dict[str, tuple[int, int]]  # by model: nano-dollars in all, and how many cells
_FIELDS = ("query_id", "session_id", "turn", "text", "embedding", "model", "source", "part", "group_id")


def read(path: Location) -> Iterator[LogBlock]:
    """Read by suffix; `model`, `quality` and `cost_usd` are as log_dearest leaves them. Raises DataError."""
    is_csv = suffix_of(path) == ".csv"
    names = csv_names(path) if is_csv else parquet_names(path)
    models = _models(path, names)
    if not {"query_id", "session_id"} & set(names):
        raise DataError(f"{path}: no column query_id or session_id; a row of a benchmark matrix needs one of them")
    cells = [model + suffix for model in models for suffix in (_QUALITY, _COST)]
    records = csv_records(path) if is_csv else parquet_records(path, [*_FIELDS, *cells])
    return log_blocks(path, _rows(records, models, "session_id" in names))


def _models(path: Location, names: list[str]) -> list[str]:
    """The models of the matrix, in the order of their columns."""
    models = list(dict.fromkeys(name.rpartition("|")[0] for name in names if name.endswith((_QUALITY, _COST))))
    if not models:
        raise DataError(
            f"{path}: no columns MODEL{_QUALITY} and MODEL{_COST}; a benchmark matrix has both of each model"
        )
    for model in models:
        for suffix in (_QUALITY, _COST):
            if names.count(model + suffix) != 1:
                raise DataError(
                    f"{path}: column {model + suffix!r} must be there once, got {names.count(model + suffix)}"
                )
    return models


def _rows(records: Iterator[Numbered], models: list[str], in_sessions: bool) -> Iterator[Numbered]:
    for record in records:
        fields = record.fields
        query_id, session_id = _text(fields.get("query_id")), _text(fields.get("session_id"))
        row = {name: fields.get(name) for name in ("text", "embedding", "model", "source", "part")} | {
            "session_id": session_id if in_sessions else query_id,
            "turn": fields.get("turn") if in_sessions else 0,
            "group_id": _text(fields.get("group_id")) or query_id,
        }
        reason = record.reason
        try:
            row["outcomes"] = [cell for model in models if (cell := _cell(fields, model))]
            row["turn"] = _number(row, "turn")
        except DataError as error:
            reason = reason or str(error)
        yield Numbered(record.line, row, reason)


def _cell(fields: Record, model: str) -> Record | None:
    """The outcome of a model; None where it was not measured."""
    quality, cost_usd = _number(fields, model + _QUALITY), _number(fields, model + _COST)
    if quality is None and cost_usd is None:
        return None
    return {"model": model, "quality": quality, "cost_usd": cost_usd}


def _number(fields: Record, name: str) -> float | None:
    """A number, also out of the text of a CSV cell or false and true. Raises DataError, without the value."""
    value = fields.get(name)
    try:
        return None if value is None else float(value)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{name} must be a number") from None


def _text(value: object) -> object:
    """Ids of benchmarks are often numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def sum_costs(table: pa.Table) -> Costs:
    """What the cells of some rows cost."""
    model, _, cost_usd = table["outcomes"].combine_chunks().flatten().flatten()
    code, names = codes(model)
    known, cost = numbers(cost_usd)
    known &= np.abs(cost) <= MAX_TURN_COST_USD  # what is no cost is refused later
    nusd = to_nusd(np.where(known, cost, 0.0))
    return {name: (sum(nusd[code == at].tolist()), int(known[code == at].sum())) for at, name in enumerate(names)}


def dearest(costs: Mapping[str, tuple[int, int]], catalog: Catalog) -> str | None:
    """The model of the highest mean cost, the first by name of equals; None without any cost."""
    by_name: dict[str, tuple[int, int]] = {}
    for alias, (nusd, count) in costs.items():
        name = _name(alias, catalog)
        before = by_name.get(name, (0, 0))
        by_name[name] = (before[0] + nusd, before[1] + count)
    means = {name: nusd / count for name, (nusd, count) in sorted(by_name.items()) if count}
    return max(means, key=means.__getitem__, default=None)


def _name(alias: str, catalog: Catalog) -> str:
    """A model's own name; one that is not in the catalog is refused later."""
    action = catalog.action_by_name.get(alias)
    return alias if action is None else catalog.names[action]


def _named(model: pa.Array, catalog: Catalog) -> pa.Array:
    """The models' own names."""
    index, aliases = codes(model)
    return pa.array([_name(alias, catalog) for alias in aliases], pa.string()).take(pa.array(index, mask=index < 0))


def log_dearest(table: pa.Table, model_of_none: str | None, catalog: Catalog) -> pa.Table:
    """Each row with its logged model's cell as quality and cost; model_of_none: logged where none is named."""
    lists = table["outcomes"].combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    row = np.repeat(np.arange(table.num_rows), lengths)
    model, quality, cost_usd = lists.flatten().flatten()
    model, logged = _named(model, catalog), _named(table["model"], catalog)
    if model_of_none:
        logged = pc.fill_null(logged, model_of_none)
    own = np.flatnonzero(pc.fill_null(pc.equal(model, logged.take(pa.array(row))), False))
    cell = np.full(table.num_rows, -1)
    cell[row[own]] = own
    cell = pa.array(cell, mask=cell < 0)
    for name, column in (("model", logged), ("quality", quality.take(cell)), ("cost_usd", cost_usd.take(cell))):
        table = table.set_column(table.column_names.index(name), name, column)
    return table
