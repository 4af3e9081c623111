"""The sessions of all ranges to one session file, and the rows put aside to one quarantine file."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import StoppedError
from seqroute_ray.core.sessions import read_sessions, write_parts
from seqroute_ray.core.storage import Folder, Location, local_path, move_local, one_line


def assemble_sessions(folder: Folder, parts: Sequence[str], pool: Catalog, out: Location) -> None:
    """parts: session files whose sessions follow each other, each over some models of the pool."""
    with _written_whole(out) as path:
        write_parts((read_sessions(f"{folder}/{part}").over(pool) for part in parts), path)


def assemble_quarantine(folder: Folder, parts: Sequence[str], out: Location) -> None:
    """parts: lines of the quarantine file, in its order."""
    with _written_whole(out) as path, path.open("wb") as file:
        for part in parts:
            file.write(folder.read(part))


@contextmanager
def _written_whole(out: Location) -> Iterator[Path]:
    """A local file to write, which then appears at a location at once; after an error it is gone.

    It stands beside a local `out`, else in the folder for temporary files. Raises StoppedError when there is no room.
    """
    beside = local_path(out)
    try:
        with tempfile.TemporaryDirectory() as elsewhere:
            home = Path(elsewhere) if beside is None else beside.parent
            home.mkdir(parents=True, exist_ok=True)
            temporary = home / f"{Path(str(out)).name}.{uuid4().hex}.tmp"
            try:
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                move_local(temporary, out)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoppedError(
            f"{out}: cannot be written ({one_line(error)}); make room and run again, what is finished is kept"
        ) from error
