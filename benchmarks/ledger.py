"""What the session ledger costs: operations a second, CPU an operation, and the latency of a reservation on the disk.

    python benchmarks/ledger.py [--folder /tmp] [--seconds 4] [--redis true]

A turn is a reservation and, after a while, its settlement with a record, a state and an embedding of usual size.
- busy: `num_busy_tasks` tasks without a pause; operations a second, CPU of the client's process an operation.
- calm: `num_calm_tasks` tasks that wait for a provider (`provider_s`) between reservation and settlement, in turn with
  plain writes of the size of a transaction, each with one fdatasync, on the same disk: `reserve_over_fdatasync` is the
  ratio of the two medians.
Each is done by 1 and by 2 processes on one ledger. Redis has an append-only file with appendfsync always. Ends with one
JSON line: `sqlite_1`, `sqlite_2`, `redis_1`, `redis_2`, each with those figures (the mean of the processes, the sum of
operations).
"""

import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _processes import machine

from seqroute_ray.core.ledger import Ledger, TurnRecord
from seqroute_ray.serving.ledgers.factory import open_ledger

NUM_SYNCS, NUM_ROUNDS = 60, 5
TRANSACTION = b"\x5a" * 24576  # six pages: a reservation alone
LEASE_S = 600.0
MODELS = [f"model-{number}" for number in range(11)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    folder: Path = Path(tempfile.gettempdir())  # on the disk that is measured
    seconds: float = 4.0  # of each measurement
    num_busy_tasks: int = 32  # of one process
    num_calm_tasks: int = 8  # of one process
    provider_s: float = 0.05
    redis: bool = True


def turn_of(name: str) -> TurnRecord:
    """A decision among eleven models, as the router records it."""
    values = dict.fromkeys(MODELS, 0.123456789)
    record = {"decision_id": name, "model": MODELS[0], "q_values": values, "bankruptcy": values, "cost_nusd": 123_456}
    return TurnRecord(
        decision_id=name,
        summary=(0.1,) * 12,
        latest={"model": MODELS[0], "decision_id": name},
        record=record | {"prompt_tokens": 900, "completion_tokens": 300, "predicted_cost_usd": values},
        embedding=np.zeros(256, dtype=np.float16).tobytes(),
    )


class Client:
    """One process's tasks, each in a session of its own."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger, self._name, self._numbers = ledger, name, itertools.count()
        self.reserve_s: list[float] = []
        self.num_operations = 0

    async def work(self, num_tasks: int, seconds: float, provider_s: float) -> None:
        until_s = time.perf_counter() + seconds
        await asyncio.gather(*(self._turns(task, until_s, provider_s) for task in range(num_tasks)))

    async def _turns(self, task: int, until_s: float, provider_s: float) -> None:
        session_id = f"{self._name}-{task}"
        await self._ledger.open(session_id, 10**15)
        await asyncio.sleep(provider_s * task / 8)  # calm tasks do not march in step
        while time.perf_counter() < until_s:
            attempt_id = f"{session_id}-{next(self._numbers)}"
            start_s = time.perf_counter()
            await self._ledger.reserve(session_id, attempt_id, MODELS[0], 200_000, LEASE_S)
            self.reserve_s.append(time.perf_counter() - start_s)
            if provider_s:
                await asyncio.sleep(provider_s)
            await self._ledger.settle(session_id, attempt_id, 123_456, turn=turn_of(attempt_id))
            self.num_operations += 2


def fdatasync_s(file: int, pause_s: float) -> Iterator[float]:
    """Seconds of plain synced writes, over and over the same blocks as SQLite's log is written.

    They pause as transactions do: a disk answers a burst of syncs much faster than single ones.
    """
    for number in range(NUM_SYNCS):
        time.sleep(pause_s)
        os.pwrite(file, TRANSACTION, number * len(TRANSACTION))
        start_s = time.perf_counter()
        os.fdatasync(file)
        yield time.perf_counter() - start_s


async def measure(settings: Settings, place: str, number: int, start: Barrier) -> dict[str, float]:
    """The figures of one process."""
    ledger = await open_ledger(place)
    await Client(ledger, f"warm-{number}").work(2, 0.2, 0.0)
    busy, calm, syncs_s = Client(ledger, f"busy-{number}"), Client(ledger, f"calm-{number}"), list[float]()
    await asyncio.to_thread(start.wait, 60)
    cpu_s, start_s = time.process_time(), time.perf_counter()
    await busy.work(settings.num_busy_tasks, settings.seconds, 0.0)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - start_s
    file = os.open(settings.folder / f"fdatasync-{os.getpid()}", os.O_RDWR | os.O_CREAT)
    os.write(file, TRANSACTION * NUM_SYNCS)
    os.fsync(file)
    for _ in range(NUM_ROUNDS):
        await asyncio.to_thread(start.wait, 60)
        syncs_s += fdatasync_s(file, settings.provider_s / settings.num_calm_tasks)
        await asyncio.to_thread(start.wait, 60)
        await calm.work(settings.num_calm_tasks, settings.seconds / NUM_ROUNDS, settings.provider_s)
    os.close(file)
    await ledger.close()
    reserve_ms, sync_ms = statistics.median(calm.reserve_s) * 1e3, statistics.median(syncs_s) * 1e3
    return {
        "operations_per_s": busy.num_operations / wall_s,
        "cpu_us_per_operation": cpu_s / busy.num_operations * 1e6,
        "busy_reserve_ms": statistics.median(busy.reserve_s) * 1e3,
        "reserve_ms": reserve_ms,
        "fdatasync_ms": sync_ms,
        "reserve_over_fdatasync": reserve_ms / sync_ms,
    }


def _process(settings: Settings, place: str, number: int, start: Barrier, found: Any) -> None:
    found.put(asyncio.run(measure(settings, place, number, start)))


def of_processes(settings: Settings, place: str, num_processes: int) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    start, found = spawn.Barrier(num_processes), spawn.Queue()
    processes = [
        spawn.Process(target=_process, args=(settings, place, number, start, found)) for number in range(num_processes)
    ]
    for process in processes:
        process.start()
    results: list[dict[str, float]] = [found.get(timeout=60 + 10 * settings.seconds) for _ in processes]
    for process in processes:
        process.join()
    figures = {name: round(statistics.mean(result[name] for result in results), 3) for name in results[0]}
    return figures | {"operations_per_s": round(sum(result["operations_per_s"] for result in results))}


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """The URL of a redis-server that syncs every write."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed: apt-get install redis-server, or --redis false")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--port {port} --bind 127.0.0.1 --dir {folder} --appendonly yes --appendfsync always".split()
    server = subprocess.Popen([program, *flags, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()


def main(settings: Settings) -> None:
    results: dict[str, Any] = {}
    for num_processes in (1, 2):
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            results[f"sqlite_{num_processes}"] = of_processes(settings, f"{folder}/ledger.sqlite", num_processes)
        print(f"sqlite, {num_processes} processes: {results[f'sqlite_{num_processes}']}", flush=True)
        if not settings.redis:
            continue
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder, running_redis(Path(folder)) as url:
            results[f"redis_{num_processes}"] = of_processes(settings, url, num_processes)
        print(f"redis, {num_processes} processes: {results[f'redis_{num_processes}']}", flush=True)
    for leftover in settings.folder.glob("fdatasync-*"):
        leftover.unlink()
    print(json.dumps({"machine": machine(), "load_1min": os.getloadavg()[0], **results}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
