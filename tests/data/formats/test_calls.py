from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest

from seqroute_ray.data.formats.calls import CALL_SCHEMA, number_turns, time_us

T = 1_767_348_000  # 2026-01-02T10:00:00Z


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (T, T * 10**6),
        (T + 0.25, T * 10**6 + 250_000),
        ("2026-01-02T10:00:00Z", T * 10**6),
        ("2026-01-02T12:00:00.5+02:00", T * 10**6 + 500_000),
        ("2026-01-02 10:00:00", T * 10**6),  # no zone: UTC
        (datetime(2026, 1, 2, 10, tzinfo=UTC), T * 10**6),
        (datetime(2026, 1, 2, 12, tzinfo=timezone(timedelta(hours=2))), T * 10**6),
        (datetime(2026, 1, 2, 10), T * 10**6),
        ("noon", None),
        (True, None),
        (10**400, 10**406),  # which is no int64: refused later, in its row
        (float("nan"), None),
        (None, None),
    ],
)
def test_times_are_microseconds_since_1970_utc(value: object, expected: int | None) -> None:
    assert time_us(value) == expected


def test_turns_are_counted_by_time_then_id_and_the_same_call_is_the_same_turn() -> None:
    calls = [("t", 5, "a"), ("s", 2, "b"), ("s", 2, "a"), ("s", 1, "z"), ("s", 2, "b"), ("s", 3, None)]
    names = ("session_id", "time_us", "call_id")
    table = pa.Table.from_pylist([dict(zip(names, call, strict=True)) for call in calls], CALL_SCHEMA)
    numbered = number_turns(table)
    assert numbered["turn"].to_pylist() == [0, 2, 1, 0, 2, 3]
    assert not {"time_us", "call_id"} & set(numbered.column_names)
    assert number_turns(table.slice(0, 0)).num_rows == 0
