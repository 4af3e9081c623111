"""The machine, and what this process and those that it started used."""

import os
import platform
from pathlib import Path


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def cluster_cpu_s() -> float:
    """CPU seconds of this process and of all that it started, their ended children included."""
    import psutil  # comes with Ray, after Ray

    total = sum(psutil.Process().cpu_times()[:2])
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return float(total)


def peak_memory_mb() -> float:
    """The most of this process or of one of Ray's workers, each of which has a shard in memory."""
    import psutil

    pids = [os.getpid()]
    for process in psutil.Process().children(recursive=True):
        if "ray::" in process.name() or "ray::" in " ".join(process.cmdline()):
            pids.append(process.pid)
    # Not ru_maxrss: a child's begins at what its parent had in memory.
    return max(int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024 for pid in pids)
