"""The log schema: one row a turn, its columns, and how they are read as arrays.

column                              type               rule
session_id                          str                not empty
turn                                int                0..T-1 in each session, no gaps
text | embedding                    str | list<float>  one of the two columns (embedding wins); one width
model                               str                in the catalog, by name or alias
quality                             float or null      in [0, 1]; null: not judged; NaN is an error
cost_usd                            float              in [0, MAX_TURN_COST_USD]; wins over tokens where both are given
prompt_tokens + completion_tokens   int                >= 0, priced by the catalog
propensity                          float or null      in (0, 1], of the logged model; null: unknown
group_id                            str or null        rows of one seed query or tree; null: the session
source                              str or null        type of task
part                                str or null        fit, tune or test; one for a session and for a group
outcomes                            list<struct>       {model, quality, cost_usd} of every answer that was measured
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError

OUTCOME_TYPE = pa.struct([("model", pa.string()), ("quality", pa.float64()), ("cost_usd", pa.float64())])
LOG_SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("turn", pa.int64()),
        ("text", pa.string()),
        ("embedding", pa.list_(pa.float32())),
        ("model", pa.string()),
        ("quality", pa.float64()),
        ("cost_usd", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("propensity", pa.float64()),
        ("group_id", pa.string()),
        ("source", pa.string()),
        ("part", pa.string()),
        ("outcomes", pa.list_(OUTCOME_TYPE)),
    ]
)
PARTS = ("fit", "tune", "test")
MAX_TURN_COST_USD = 1e6  # far above any call; keeps sums of nano-dollars inside int64

# Each must be there; of a tuple of alternatives one must be whole.
_REQUIRED: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("session_id",),),
    (("turn",),),
    (("model",),),
    (("embedding",), ("text",)),
    (("cost_usd",), ("prompt_tokens", "completion_tokens")),
)
_OPTIONAL = ("embedding", "outcomes")  # of some logs: tables of others do not have the column


def fit_types(table: pa.Table, file: str, schema: pa.Schema = LOG_SCHEMA) -> pa.Table:
    """The schema's columns in its types, null where the table has none; empty ids are null.

    Raises DataError naming the file and the column of a wrong type.
    """
    present = set(table.column_names)
    columns = {
        field.name: _cast(table[field.name], field, file)
        if field.name in present
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    }
    for name in {"session_id", "group_id"} & columns.keys():
        columns[name] = pc.if_else(pc.equal(columns[name], ""), pa.scalar(None, pa.string()), columns[name])
    return pa.table(columns)


def with_values(table: pa.Table) -> set[str]:
    """The columns that are not all null."""
    columns = zip(table.column_names, table.columns, strict=True)
    return {name for name, column in columns if column.null_count < len(column)}


def require_columns(names: set[str], logs: str) -> None:
    """Raises DataError when logs whose rows have values in these columns lack one that every log needs."""
    for alternatives in _REQUIRED:
        if not any(names.issuperset(alternative) for alternative in alternatives):
            wanted = " or ".join(" + ".join(alternative) for alternative in alternatives)
            raise DataError(f"{logs}: no row has {wanted}; a log row needs it; columns with values: {sorted(names)}")


def conform(table: pa.Table, names: set[str]) -> pa.Table:
    """A table of fit_types without the optional columns that no row of the logs has a value in.

    names: columns with values in all the logs, of which the table may be a part.
    """
    return table.select([name for name in LOG_SCHEMA.names if name in names or name not in _OPTIONAL])


def _cast(column: pa.ChunkedArray, field: pa.Field, file: str) -> pa.ChunkedArray:
    problem = f"{file}: column {field.name!r} must be {field.type}, got {column.type}"
    if not _fits(column.type, field.type):
        raise DataError(problem)
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{problem}: {' '.join(str(error).split())}") from error


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """True when a column of type `given` holds what `wanted` means, in another width or layout."""
    if pa.types.is_null(given):
        return True
    if pa.types.is_dictionary(given):
        return _fits(given.value_type, wanted)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(given) or pa.types.is_large_string(given))
    if pa.types.is_struct(wanted):
        return bool(pa.types.is_struct(given)) and all(
            given.get_field_index(field.name) >= 0 and _fits(given.field(field.name).type, field.type)
            for field in wanted
        )
    if pa.types.is_list(wanted):
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_kind(given) for is_kind in lists) and _fits(given.value_type, wanted.value_type)
    return bool(pa.types.is_integer(given) or pa.types.is_floating(given))


class Numbers(NamedTuple):
    """A column of numbers; `value` is 0 where `known` is False."""

    known: BoolArray
    value: NDArray[np.float64]


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def numbers(column: pa.ChunkedArray | pa.Array) -> Numbers:
    """[N] values and which of them are not null."""
    values = np.asarray(pc.fill_null(_flat(column), 0), dtype=np.float64)
    return Numbers(np.asarray(pc.is_valid(_flat(column))), values)


def codes(column: pa.ChunkedArray | pa.Array) -> tuple[IntArray, list[str]]:
    """[N] index of each string in the list of distinct strings; -1 for null."""
    encoded = _flat(column).dictionary_encode()
    return np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int64), encoded.dictionary.to_pylist()


def actions(column: pa.ChunkedArray | pa.Array, catalog: Catalog) -> IntArray:
    """[N] action of each model name; -1 for null or a model that is not in the catalog."""
    index, names = codes(column)
    return np.array([*(catalog.action_by_name.get(name, -1) for name in names), -1], dtype=np.int64)[index]


def turn_cost_usd(table: pa.Table, catalog: Catalog) -> FloatArray:
    """[N] cost_usd where given, else tokens at catalog prices; NaN where neither is there or the model is unknown."""
    cost, prompt, completion = (numbers(table[name]) for name in ("cost_usd", "prompt_tokens", "completion_tokens"))
    action = actions(table["model"], catalog)
    priced = prompt.known & completion.known & (action >= 0)
    tokens = (prompt.value.astype(np.int64), completion.value.astype(np.int64))
    from_tokens = np.where(priced, catalog.cost_usd(action, *tokens), np.nan)
    return np.where(cost.known, cost.value, from_tokens)


def group_key(table: pa.Table) -> pa.ChunkedArray:
    """[N] group_id where there is one, else the session's id."""
    return pc.coalesce(table["group_id"], table["session_id"])


class OutcomeCells(NamedTuple):
    """All measured outcomes of a table, one after the other: [M]."""

    row: IntArray  # of the table
    action: IntArray  # -1: not in the catalog
    model: pa.Array
    quality: Numbers
    cost_usd: Numbers


def outcome_cells(table: pa.Table, catalog: Catalog) -> OutcomeCells:
    """Flatten the outcomes column; a null list has no cells, a null cell has all fields null."""
    lists = _flat(table["outcomes"])
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    model, quality, cost_usd = lists.flatten().flatten()  # the struct's fields, with its nulls
    row = np.repeat(np.arange(len(lists)), lengths)
    return OutcomeCells(row, actions(model, catalog), model, numbers(quality), numbers(cost_usd))
