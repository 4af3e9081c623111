"""Rows of Python values to a table of a schema; values of a wrong type are put aside with the reason."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.log_schema import LOG_SCHEMA, fit_types
from seqroute_ray.core.storage import Location
from seqroute_ray.data.formats.records import Numbered, Record

ROWS_PER_BLOCK = 2048  # made a table at once; also how many rows one of a wrong type makes slow
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class LogBlock:
    """Some rows of a file in the types of a schema, and where they come from."""

    table: pa.Table  # N rows, with every column of the schema
    line: IntArray  # [N] of the file, from 1; of formats without lines the row
    broken: Mapping[int, str] = dataclasses.field(
        default_factory=dict
    )  # why rows cannot be used, as far as reading tells
    failed_lines: tuple[int, ...] = ()  # calls without an answer: no rows of the table


def log_blocks(path: Location, rows: Iterable[Numbered], schema: pa.Schema = LOG_SCHEMA) -> Iterator[LogBlock]:
    """The rows of a file in the schema's types; a row with a reason stands in `broken`.

    A value that does not fit its type is null in the table, and a reason to put its row aside.
    """
    for block in _blocks(rows):
        kept = [row for row in block if not row.is_failed]
        table, reasons = _block_table([row.fields for row in kept], schema)
        why = [row.reason or unfit for row, unfit in zip(kept, reasons, strict=True)]
        yield LogBlock(
            table=fit_types(table, str(path), schema),
            line=np.array([row.line for row in kept], dtype=np.int64),
            broken={at: reason for at, reason in enumerate(why) if reason},
            failed_lines=tuple(row.line for row in block if row.is_failed),
        )


def _blocks(rows: Iterable[Numbered]) -> Iterable[list[Numbered]]:
    rows = iter(rows)
    while block := list(islice(rows, ROWS_PER_BLOCK)):
        yield block


def _block_table(rows: Sequence[Record], schema: pa.Schema) -> tuple[pa.Table, Sequence[str]]:
    """The rows as a table, and for each why some value is null there; empty where all fit."""
    try:
        return _to_table(rows, schema), [""] * len(rows)
    except _UNFIT:  # some row has a value of another type
        fit, reasons = zip(*(_drop_unfit(row, schema) for row in rows), strict=True)
        return _to_table(fit, schema), reasons


def _to_table(rows: Sequence[Record], schema: pa.Schema) -> pa.Table:
    """Raises one of _UNFIT when a value is of another type than its field."""
    for field in schema:
        is_number = field.type in (pa.int64(), pa.float64())
        if is_number and any(isinstance(row.get(field.name), bool) for row in rows):  # Arrow would read 0 or 1
            raise TypeError(f"{field.name} must be a number")
    return pa.Table.from_pylist(rows, _read_schema(schema)).cast(schema)


def _read_schema(schema: pa.Schema) -> pa.Schema:
    """Arrow cuts 1.5 to 1 where it makes integers of Python's numbers, but not when it casts."""
    return pa.schema([field.with_type(pa.float64() if field.type == pa.int64() else field.type) for field in schema])


def _drop_unfit(row: Record, schema: pa.Schema) -> tuple[Record, str]:
    """The row without the fields that do not fit their type, and the reason that names them."""
    fit, reasons = {}, []
    for name in row.keys() & set(schema.names):
        field = schema.field(name)
        try:
            _to_table([{name: row[name]}], pa.schema([field]))
        except _UNFIT:
            reasons.append(f"{name} must be {field.type}, got a value of another type")
        else:
            fit[name] = row[name]
    return fit, "; ".join(sorted(reasons))
