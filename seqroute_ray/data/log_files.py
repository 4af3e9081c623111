"""Log files of any format to one table: which files, which reader, joined."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.log_schema import conform
from seqroute_ray.core.logs import Origin
from seqroute_ray.data.formats import calls, litellm, openai_chat, own, trajectory, wide
from seqroute_ray.data.formats.records import JSON_SUFFIXES
from seqroute_ray.data.formats.rows import LogFile

log = logging.getLogger(__name__)


class Format(NamedTuple):
    """How the logs of one producer are read."""

    suffixes: tuple[str, ...]  # of its files
    read: Callable[[Path], LogFile]  # one file
    finish: Callable[[pa.Table], pa.Table] = lambda table: table  # what only the rows of all files together tell


FormatName = Literal["seqroute", "openai-chat", "litellm", "wide", "trajectory"]
FORMATS: dict[FormatName, Format] = {
    "seqroute": Format((".parquet", *JSON_SUFFIXES), own.read),
    "openai-chat": Format(JSON_SUFFIXES, openai_chat.read, calls.number_turns),
    "litellm": Format((".parquet", *JSON_SUFFIXES), litellm.read, calls.number_turns),
    "wide": Format((".parquet", ".csv"), wide.read, wide.log_dearest),
    "trajectory": Format(JSON_SUFFIXES, trajectory.read),
}


@dataclass(frozen=True, slots=True)
class Logs:
    """The rows of all files in the log schema, and where they come from."""

    table: pa.Table
    origin: Origin
    num_failed_calls: int  # left out


def read_logs(paths: Sequence[Path], format_name: FormatName = "seqroute") -> Logs:
    """Read files, and the files of folders, in the order of their names.

    A row that cannot be read stands in `origin.broken` with its reason. Raises DataError naming the file when there are
    no rows, a column is missing or of a wrong type, or it is no such file.
    """
    kind = FORMATS[format_name]
    names = sorted({file for path in paths for file in _files(path, kind)})
    files = [_read(path, format_name) for path in names]
    origin = Origin.join([file.origin for file in files])
    table = kind.finish(pa.concat_tables([file.table for file in files], promote_options="default"))
    label = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else str(names[0])
    if table.num_rows == 0:
        raise DataError(f"{label}: every call failed; an import needs calls with answers")
    every_row_broken = len(origin.broken) == table.num_rows  # then no column tells anything
    num_failed = sum(len(file.failed_lines) for file in files)
    return Logs(table if every_row_broken else conform(table, label), origin, num_failed)


def _files(path: Path, kind: Format) -> list[Path]:
    """The file, or the files of a folder that end as those of the format do."""
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in kind.suffixes]
    if not files:
        raise DataError(f"{path}: no log files in this folder; they end in {', '.join(kind.suffixes)}")
    return files


def _read(path: Path, format_name: FormatName) -> LogFile:
    kind = FORMATS[format_name]
    if not path.is_file():
        raise DataError(f"{path}: no such log file")
    if path.suffix not in kind.suffixes:
        raise DataError(f"{path}: {format_name} logs end in {', '.join(kind.suffixes)}, got {path.suffix!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the log file is empty (0 bytes); it needs one row a turn")
    file = kind.read(path)
    if file.failed_lines:
        lines = ",".join(map(str, file.failed_lines))
        log.warning("left out failed calls file=%s calls=%d lines=%s", path, len(file.failed_lines), lines)
    elif file.table.num_rows == 0:
        raise DataError(f"{path}: the log file has 0 rows; it needs one row a turn")
    return file
