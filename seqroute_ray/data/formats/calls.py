"""What logs of calls share: a call is a turn, numbered in its session by time; its text is the last user message."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqroute_ray.core.log_schema import LOG_SCHEMA, codes
from seqroute_ray.core.storage import Location
from seqroute_ray.data.formats.records import Numbered, Record
from seqroute_ray.data.formats.rows import LogBlock, log_blocks

_ORDER = [("session_id", pa.string()), ("time_us", pa.int64()), ("call_id", pa.string())]
CALL_SCHEMA = pa.schema([*(field for field in LOG_SCHEMA if field.name not in ("session_id", "turn")), *_ORDER])
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)


def read_calls(
    path: Location,
    records: Iterable[Numbered],
    call: Callable[[Record], Record],
    is_failed: Callable[[Record], bool],
    needs: Mapping[str, str],
) -> Iterator[LogBlock]:
    """The calls of a file; failed ones, which have no answer to judge, are left out and listed.

    call: a record's row in CALL_SCHEMA. needs: the fields that a row cannot do without, and what to say of one that
    is missing.
    """

    def rows() -> Iterator[Numbered]:
        for record in records:
            if record.reason:
                yield record
            elif is_failed(record.fields):
                yield Numbered(record.line, {}, is_failed=True)
            else:
                row = call(record.fields)
                yield Numbered(record.line, row, next((why for name, why in needs.items() if row[name] is None), ""))

    return log_blocks(path, rows(), CALL_SCHEMA)


def number_turns(table: pa.Table) -> pa.Table:
    """Calls to turns: those of a session are counted from 0 by time, then by id.

    Two calls with the same time and id are the same turn, which check_rows refuses.
    """
    order = np.asarray(pc.sort_indices(table, sort_keys=[(name, "ascending") for name, _ in _ORDER]))
    keys = np.stack([codes(table[name])[0][order] for name, _ in _ORDER])
    differs = np.diff(keys, axis=1, prepend=-2) != 0
    begins = differs[0]
    count = np.cumsum(differs.any(axis=0))
    turn = np.empty(table.num_rows, dtype=np.int64)
    turn[order] = count - count[begins][np.cumsum(begins) - 1]
    return table.drop_columns(["time_us", "call_id"]).append_column("turn", pa.array(turn))


def time_us(value: object) -> int | None:
    """Microseconds since 1970 of Unix seconds, an ISO 8601 text or a datetime (UTC where none is named); else None."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1_000_000
    if isinstance(value, float) and math.isfinite(value):
        return round(value * 1_000_000)
    return None
