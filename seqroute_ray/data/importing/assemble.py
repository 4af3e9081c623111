"""The sessions of all ranges to one session file, and their bad rows to one quarantine file."""

import heapq
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.sessions import read_sessions, write_parts
from seqroute_ray.core.storage import Folder, Location, is_local, move_local, open_input

Line = tuple[int, int, dict[str, object]]  # file, row, what the quarantine file says


def assemble_sessions(folder: Folder, parts: Sequence[str], pool: Catalog, out: Location) -> None:
    """parts: session files whose sessions follow each other, each over some models of the pool."""
    with _written_whole(out) as path:
        write_parts((read_sessions(f"{folder}/{part}").over(pool) for part in parts), path)


def assemble_quarantine(folder: Folder, parts: Sequence[str], out: Location) -> None:
    """parts: lines in the order of files and rows."""
    with _written_whole(out) as path, path.open("w") as file:
        lines = heapq.merge(*(_lines(f"{folder}/{part}") for part in parts), key=lambda line: line[:2])
        for _file, _row, line in lines:
            file.write(json.dumps(line) + "\n")


def _lines(location: str) -> Iterator[Line]:
    with open_input(location) as file:
        for line in file:
            at, row, fields = json.loads(line)
            yield at, row, fields


@contextmanager
def _written_whole(out: Location) -> Iterator[Path]:
    """A local file to write, which then appears at a location at once; after an error it is gone."""
    if is_local(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{out}.tmp")
    else:
        temporary = Path(tempfile.mkstemp(suffix=Path(str(out)).name)[1])
    try:
        yield temporary
        move_local(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
