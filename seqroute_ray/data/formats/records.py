"""Files to numbered records, as they stand there: JSON lines, JSON arrays, Parquet, CSV."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.storage import Location, one_line, open_input

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ROWS_PER_BATCH = 2048  # of a Parquet file, made Python objects at once

Record = dict[str, Any]


class Numbered(NamedTuple):
    """A record, or what could be read of it, with its place."""

    line: int  # of the file, from 1; of formats without lines the row
    fields: Record
    reason: str = ""  # why it cannot be used
    is_failed: bool = False  # a call without an answer: nothing to judge


def json_lines(path: Location) -> Iterator[Numbered]:
    """The object of each line that is not blank."""
    with open_input(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield _parse(number, line)


def json_records(path: Location) -> Iterator[Numbered]:
    """The objects of a JSON array, numbered from 1, or of JSON lines."""
    with open_input(path) as file:
        is_array = file.read(1024).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")
    if not is_array:
        yield from json_lines(path)
        return
    try:
        with open_input(path) as file:
            values = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON array: {one_line(error)}") from error
    for number, value in enumerate(values, start=1):
        yield _object(number, value)


def _parse(number: int, line: bytes) -> Numbered:
    """NaN, which is no JSON, is read as NaN."""
    try:
        value = json.loads(line)  # not Arrow's reader: a line `null` crashes it (pyarrow 26)
    except (ValueError, RecursionError) as error:
        return Numbered(number, {}, f"not a line of JSON: {one_line(error)}")
    return _object(number, value)


def _object(number: int, value: object) -> Numbered:
    if not isinstance(value, dict):
        return Numbered(number, {}, f"not a JSON object but a {type(value).__name__}; a log row is {{...}}")
    return Numbered(number, value)


def parquet_names(path: Location) -> list[str]:
    """The columns of a Parquet file."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def parquet_records(path: Location, names: Sequence[str]) -> Iterator[Numbered]:
    """The rows of a Parquet file, with those of the named columns that it has, numbered from 1."""
    with open_parquet(path) as file:
        columns, line = [name for name in names if name in file.schema_arrow.names], 0
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
            for fields in batch.to_pylist():
                yield Numbered(line := line + 1, fields)


@contextmanager
def open_parquet(path: Location) -> Iterator[pq.ParquetFile]:
    """Raises DataError naming the file, also for what is read from it."""
    try:
        with open_input(path) as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


def csv_names(path: Location) -> list[str]:
    """The columns of a CSV file."""
    with _open_text(path) as file:
        try:
            return next(csv.reader(file), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise _unreadable_csv(path, error) from error


def csv_records(path: Location) -> Iterator[Numbered]:
    """The rows below the header of a CSV file, with the line each begins at; an empty cell is None."""
    with _open_text(path) as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            line = rows.line_num + 1
            for cells in rows:
                if cells:
                    yield _cells(line, header, cells)
                line = rows.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise _unreadable_csv(f"{path}:{rows.line_num}", error) from error


def _unreadable_csv(place: Location, error: csv.Error | UnicodeDecodeError) -> DataError:
    why = "it must be UTF-8" if isinstance(error, UnicodeDecodeError) else one_line(error)
    return DataError(f"{place}: not a readable CSV file: {why}")


def _cells(line: int, header: list[str], cells: list[str]) -> Numbered:
    if len(cells) != len(header):
        return Numbered(line, {}, f"a row needs {len(header)} cells as the header has, got {len(cells)}")
    return Numbered(line, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _open_text(path: Location) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_input(path), encoding="utf-8-sig", newline="")
