"""One process at a time, by a lock file on a local disk: the kernel holds the lock, and drops it when its holder dies.

So no lock is ever stale, whatever was killed; the file stays and means nothing by itself. Network file systems hold
such locks where they support them (NFS 4 does); object stores have none.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqroute_ray.core.errors import ConfigError


@contextmanager
def only_one(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock while the block runs. When it is taken: wait, or raise a ConfigError that names the holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(f"{path}: held by {holder}, which is at work; wait for it, or stop it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
