"""Judgements brought beside the logs: the quality of turns, joined on session and turn."""

from pathlib import Path

import pyarrow as pa

from seqroute_ray.core.errors import DataError
from seqroute_ray.data.formats.own import read_parquet
from seqroute_ray.data.formats.records import JSON_SUFFIXES, json_lines
from seqroute_ray.data.formats.rows import LogFile, log_file

_SCHEMA = pa.schema([("session_id", pa.string()), ("turn", pa.int64()), ("quality", pa.float64())])

Turn = tuple[str | None, int | None]  # session_id and turn


def judge(table: pa.Table, path: Path) -> pa.Table:
    """Log rows with the qualities of a judgement file in place of their own.

    Raises DataError naming the file, the line and the rule of the first judgement that cannot be used, and no ids.
    """
    judgements = _read(path)
    turns, scores = _turns(table), dict[Turn, float]()
    in_logs = set(turns)
    for at, (turn, score) in enumerate(
        zip(_turns(judgements.table), judgements.table["quality"].to_pylist(), strict=True)
    ):
        reason = judgements.origin.broken.get(at) or _reason(turn, score)
        if not reason and turn not in in_logs:
            reason = "no such session_id and turn in the logs"
        if not reason and turn in scores:
            reason = "duplicate judgement: a turn has one"
        if reason:
            raise DataError(f"{judgements.origin.place(at)}: {reason}")
        scores[turn] = score
    quality = [scores.get(turn, own) for turn, own in zip(turns, table["quality"].to_pylist(), strict=True)]
    return table.set_column(table.column_names.index("quality"), "quality", pa.array(quality, pa.float64()))


def _reason(turn: Turn, score: float | None) -> str:
    if None in turn:
        return "a judgement needs session_id and turn"
    if score is None or not 0 <= score <= 1:  # NaN is not
        return f"quality must be in [0, 1], got {score}"
    return ""


def _turns(table: pa.Table) -> list[Turn]:
    return list(zip(table["session_id"].to_pylist(), table["turn"].to_pylist(), strict=True))


def _read(path: Path) -> LogFile:
    if not path.is_file():
        raise DataError(f"{path}: no such file of judgements")
    if path.suffix not in (".parquet", *JSON_SUFFIXES):
        raise DataError(f"{path}: judgements end in .parquet, {', '.join(JSON_SUFFIXES)}, got {path.suffix!r}")
    file = read_parquet(path, _SCHEMA) if path.suffix == ".parquet" else log_file(path, json_lines(path), _SCHEMA)
    for name in _SCHEMA.names:
        if name not in file.table.column_names:
            raise DataError(f"{path}: no column {name}; a judgement has session_id, turn, quality")
    return file
