"""Tables of fixed-width rows in memory-mapped files: made once for a dataset, shared by every process of a machine.

What is read comes into memory page by page and leaves it again when a budget is reached, so a table may be larger
than memory; a table within the budget stays there.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqroute_ray.core.arrays import IntArray


class RowFile:
    """The rows of one file, each of one dtype; a field of it may be an array."""

    def __init__(self, path: Path, dtype: DTypeLike, memory_mb: float) -> None:
        self._place = (path, dtype, memory_mb)
        self._limit, self._touched, size = memory_mb * 2**20, 0, path.stat().st_size
        self._map: mmap.mmap | None = None
        buffer: Any = b""
        if size:  # an empty file cannot be mapped
            with path.open("rb") as file:
                self._map = buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows: NDArray[Any] = np.frombuffer(buffer, dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, self._place

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: IntArray) -> NDArray[Any]:
        """A copy of some rows."""
        taken = self._rows[rows]
        self._touched += len(rows) * max(mmap.PAGESIZE, self._rows.itemsize)  # at worst, each row on a page of its own
        if self._map is not None and self._touched > self._limit:
            self._touched = 0
            if self._rows.nbytes > self._limit:
                self._map.madvise(mmap.MADV_DONTNEED)  # the file's pages stay in the system's cache while there is room
        return taken


def made_once(key: str, make: Callable[[Path], None]) -> Path:
    """A folder of derived files in the directory for temporary ones (TMPDIR), made unless it is there already."""
    root = Path(tempfile.gettempdir()) / f"seqroute-{os.getuid()}"
    folder = root / key
    if folder.exists():
        return folder
    root.mkdir(mode=0o700, exist_ok=True)
    unfinished = root / f"{key}.{uuid4().hex}"
    unfinished.mkdir()
    try:
        make(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
