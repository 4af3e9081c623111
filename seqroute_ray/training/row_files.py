"""Tables of fixed-width rows in files: made once for a dataset, shared by every process of a machine.

A table within a budget is mapped into memory, once for all processes; of one beyond it only the rows asked for are
read, so it may be larger than memory (the system keeps what it has room for in its cache).
"""

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import ConfigError


class RowFile:
    """The rows of one file, each of one dtype; a field of it may be an array."""

    def __init__(self, path: Path, dtype: DTypeLike, memory_mb: float) -> None:
        self._place, self._dtype = (path, dtype, memory_mb), np.dtype(dtype)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._num_rows = path.stat().st_size // self._dtype.itemsize
        self._mapped: NDArray[Any] | None = None
        if 0 < self._num_rows * self._dtype.itemsize <= memory_mb * 2**20:
            mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
            self._mapped = np.frombuffer(mapping, dtype=dtype)
        else:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead of what is asked for

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, self._place

    def __len__(self) -> int:
        return self._num_rows

    def take(self, rows: IntArray) -> NDArray[Any]:
        """A copy of some rows."""
        if self._mapped is not None:
            return np.take(self._mapped, rows, axis=0)  # ten times as fast as an index, for rows of several fields
        # Not by a map: the kernel maps up to megabytes around a row, and counts them as this process's memory.
        file, size = self._descriptor, self._dtype.itemsize
        content = b"".join(os.pread(file, size, row * size) for row in rows.tolist())
        return np.frombuffer(bytearray(content), dtype=self._dtype)


def made_once(key: str, make: Callable[[Path], None]) -> Path:
    """A folder of derived files in the directory for temporary ones (TMPDIR), made unless it is there already.

    Raises ConfigError when another user made the place.
    """
    root = Path(tempfile.gettempdir()) / f"seqroute-{os.getuid()}"
    folder = root / key
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():  # who made it could put other rows in it
        raise ConfigError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
    if folder.exists():
        return folder
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
