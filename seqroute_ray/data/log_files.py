"""Log files of any format: which files, and which reader."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.log_schema import LOG_SCHEMA
from seqroute_ray.core.logs import NAMELESS
from seqroute_ray.core.storage import FileState, Location, files_in, state_of, suffix_of
from seqroute_ray.data.formats import calls, litellm, openai_chat, own, trajectory, wide
from seqroute_ray.data.formats.records import JSON_SUFFIXES
from seqroute_ray.data.formats.rows import LogBlock

Finish = Callable[[pa.Table, str | None, Catalog], pa.Table]  # of rows, the dearest model of all files, a catalog


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the files of one producer are read."""

    name: str
    suffixes: tuple[str, ...]  # of its files
    read: Callable[[Location], Iterator[LogBlock]]  # one file, in the schema
    schema: pa.Schema = LOG_SCHEMA
    sum_costs: Callable[[pa.Table], wide.Costs] = lambda _rows: {}  # what `finish` needs to know of all files
    finish: Finish = lambda rows, _dearest, _catalog: rows  # whole sessions to LOG_SCHEMA
    nameless: str = NAMELESS  # why a row without a session cannot be used


FormatName = Literal["seqroute", "openai-chat", "litellm", "wide", "trajectory"]
_ANY = (".parquet", *JSON_SUFFIXES)
_CALLS = {"schema": calls.CALL_SCHEMA, "finish": lambda rows, _dearest, _catalog: calls.number_turns(rows)}
FORMATS: dict[FormatName, Format] = {
    "seqroute": Format(name="seqroute", suffixes=_ANY, read=own.read),
    "openai-chat": Format(name="openai-chat", suffixes=JSON_SUFFIXES, read=openai_chat.read, **_CALLS),
    "litellm": Format(name="litellm", suffixes=_ANY, read=litellm.read, **_CALLS),
    "wide": Format(
        name="wide",
        suffixes=(".parquet", ".csv"),
        read=wide.read,
        sum_costs=wide.sum_costs,
        finish=wide.log_dearest,
    ),
    "trajectory": Format(name="trajectory", suffixes=JSON_SUFFIXES, read=trajectory.read),
}


def find_logs(locations: Iterable[Location], kind: Format) -> list[FileState]:
    """The files, and the files of folders that end as those of the format do, in the order of their names.

    Raises DataError naming a file that is not there, is empty or ends otherwise, and a folder without any.
    """
    states: dict[str, FileState] = {}
    for location in locations:
        found = files_in(location)
        if found is None:
            states[str(location)] = _file(str(location), kind)
            continue
        logs = [state for state in found if suffix_of(state.location) in kind.suffixes]
        if not logs:
            raise DataError(f"{location}: no log files in this folder; they end in {', '.join(kind.suffixes)}")
        states |= {state.location: state for state in logs}
    for name, state in states.items():
        if state.size == 0:
            raise DataError(f"{name}: the log file is empty (0 bytes); it needs one row a turn")
    return [states[name] for name in sorted(states)]


def _file(name: str, kind: Format) -> FileState:
    state = state_of(name)
    if state is None:
        raise DataError(f"{name}: no such log file")
    if suffix_of(name) not in kind.suffixes:
        raise DataError(f"{name}: {kind.name} logs end in {', '.join(kind.suffixes)}, got {suffix_of(name)!r}")
    return state
