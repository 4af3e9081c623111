"""Rows of Python values to a table of a schema; values of a wrong type are put aside with the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from seqroute_ray.core.log_schema import LOG_SCHEMA
from seqroute_ray.core.logs import Origin
from seqroute_ray.data.formats.records import Numbered, Record

ROWS_PER_BLOCK = 2048  # made a table at once; also how many rows one of a wrong type makes slow
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class LogFile:
    """Rows in the log schema, and where they come from."""

    table: pa.Table
    origin: Origin
    failed_lines: tuple[int, ...] = ()  # calls without an answer: no rows of the table


def log_file(path: Path, rows: Iterable[Numbered], schema: pa.Schema = LOG_SCHEMA) -> LogFile:
    """The rows of a file in the schema's types; a row with a reason stands in `origin.broken`.

    A value that does not fit its type is null in the table, and a reason to put its row aside.
    """
    tables, line, broken = [schema.empty_table()], list[int](), dict[int, str]()
    for block in _blocks(rows):
        table, reasons = _block_table([row.fields for row in block], schema)
        for at, (row, unfit) in enumerate(zip(block, reasons, strict=True)):
            if row.reason or unfit:
                broken[len(line) + at] = row.reason or unfit
        line += [row.line for row in block]
        tables.append(table)
    file = np.full(len(line), str(path), dtype=object)
    return LogFile(pa.concat_tables(tables), Origin(file=file, line=np.array(line, dtype=np.int64), broken=broken))


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
