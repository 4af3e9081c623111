"""Judgements brought beside the logs: the quality of turns, joined on session and turn."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.storage import FileState, Location, state_of, suffix_of
from seqroute_ray.data.formats.own import parquet_blocks
from seqroute_ray.data.formats.records import JSON_SUFFIXES, json_lines, parquet_names
from seqroute_ray.data.formats.rows import LogBlock, log_blocks
from seqroute_ray.data.log_files import Format

SCHEMA = pa.schema([("session_id", pa.string()), ("turn", pa.int64()), ("quality", pa.float64())])
_NAMELESS = "a judgement needs session_id and turn"
_SUFFIXES = (".parquet", *JSON_SUFFIXES)

Turn = tuple[str | None, int | None]  # session_id and turn


class BadJudgement(NamedTuple):
    """A judgement that cannot be used, and why, without its ids."""

    row: int
    reason: str


def judge(table: pa.Table, judgements: pa.Table, broken: Mapping[int, str]) -> tuple[pa.Table, BadJudgement | None]:
    """Log rows with the qualities of judgements in place of their own, and the first judgement that cannot be used.

    table: the rows of some sessions, in the log schema. judgements: those of the same sessions, in SCHEMA. broken:
    reasons by row of judgements, as far as reading told.
    """
    turns, scores = _turns(table), dict[Turn, float]()
    in_logs = set(turns)
    for row, (turn, score) in enumerate(zip(_turns(judgements), judgements["quality"].to_pylist(), strict=True)):
        reason = broken.get(row) or _reason(turn, score)
        if not reason and turn not in in_logs:
            reason = "no such session_id and turn in the logs"
        if not reason and turn in scores:
            reason = "duplicate judgement: a turn has one"
        if reason:
            return table, BadJudgement(row, reason)
        scores[turn] = score
    quality = [scores.get(turn, own) for turn, own in zip(turns, table["quality"].to_pylist(), strict=True)]
    return table.set_column(table.column_names.index("quality"), "quality", pa.array(quality, pa.float64())), None


def _reason(turn: Turn, score: float | None) -> str:
    if None in turn:
        return _NAMELESS
    if score is None or not 0 <= score <= 1:  # NaN is not
        return f"quality must be in [0, 1], got {score}"
    return ""


def _turns(table: pa.Table) -> list[Turn]:
    return list(zip(table["session_id"].to_pylist(), table["turn"].to_pylist(), strict=True))


def find_judgements(path: Location) -> FileState:
    """Raises DataError when it is no file of judgements by its name and columns."""
    state = state_of(path)
    if state is None:
        raise DataError(f"{path}: no such file of judgements")
    if suffix_of(path) not in _SUFFIXES:
        raise DataError(f"{path}: judgements end in {', '.join(_SUFFIXES)}, got {suffix_of(path)!r}")
    if state.size == 0:
        raise DataError(f"{path}: the file of judgements is empty (0 bytes); it needs one judgement a row")
    missing = [name for name in SCHEMA.names if suffix_of(path) == ".parquet" and name not in parquet_names(path)]
    if missing:
        raise DataError(f"{path}: no column {missing[0]}; a judgement has session_id, turn, quality")
    return state


def _read(path: Location) -> Iterator[LogBlock]:
    is_parquet = suffix_of(path) == ".parquet"
    return parquet_blocks(path, SCHEMA) if is_parquet else log_blocks(path, json_lines(path), SCHEMA)


JUDGEMENTS = Format(name="judgements", suffixes=_SUFFIXES, read=_read, schema=SCHEMA, nameless=_NAMELESS)
