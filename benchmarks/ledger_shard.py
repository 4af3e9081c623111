"""What one shard of the session ledger costs: CPU a turn of Redis and of its callers, bytes a turn, and what blocks it.

    PYTHONPATH=. python benchmarks/ledger_shard.py [--num-turns 24000] [--folder /tmp]

A turn is a read of its account, a reservation, and a settlement with a record, a memory and an embedding of the size
that a pool of three models makes; sessions have eight turns. Operations of one kind come in a row, so that each has a
figure of its own.

redis_many   as many replicas come: `num_clients` ledgers with connections of their own, one operation each at a time
redis_one    as one busy process comes: one ledger, `num_clients` operations at a time
sqlite       one process on a file, `num_clients` operations at a time

CPU is Redis' own (INFO cpu) and the calling process'. Redis syncs its file before it answers (appendfsync always) and
does not rewrite it. Ends with one JSON line.
"""

import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import redis
import tyro
from _processes import machine

from seqroute_ray.core.ledger import Feedback, Ledger, TurnRecord
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.serving.decision_log import export_decisions
from seqroute_ray.serving.ledgers.audit import audit
from seqroute_ray.serving.ledgers.factory import open_ledger
from tests.serving.ledgers.redis_server import RedisServer

MODELS = ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "gpt-4o-2024-08-06")
SUMMARY_WIDTH = 10  # of the trio's features and one for the sum of tokens
LEASE_S, BUDGET_NUSD, AMOUNT_NUSD, COST_NUSD = 600.0, 10**14, 1_234_567, 654_321
NUM_SYNCS, SYNC_PAUSE_S = 200, 0.002

Measured = dict[str, Any]
Server = Any  # a redis.Redis: its methods have no types


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_turns: int = 24_000
    turns_a_session: int = 8
    num_clients: int = 32
    num_month_attempts: int = 20_000  # of one account, as the month of an API key has them
    folder: Path = Path(tempfile.gettempdir())  # on the disk that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Operations of one kind."""

    per_s: float
    caller_us: float  # CPU an operation of the process that asks
    redis_us: float  # CPU an operation of Redis; 0 with SQLite


def turn_of(decision_id: str) -> TurnRecord:
    """What serving.settling records of a turn."""
    values = dict.fromkeys(MODELS, 0.8123456789012345)
    record = {
        "model": MODELS[1],
        "action": 1,
        "chosen_by": "policy",
        "degraded": ["shorter_answer"],
        "lambda_per_usd": 0.0,
        "bankruptcy_penalty": 4.123456,
        "q_values": values,
        "bankruptcy": values,
        "predicted_cost_usd": values,
        "masked": {MODELS[2]: "its 95 % cost of $0.012345678 exceeds the $0.009876543 left"},
        "propensity": 0.966666,
        "max_tokens": 1024,
        "policy_version": "9779f1111f6a",
        "reserve_usd": AMOUNT_NUSD / 1e9,
        "decision_id": decision_id,
        "attempt_id": f"{decision_id}.0.0",
        "session_from": "x-session-id",
        "policy": "current",
        "task_type": "",
        "prompt_tokens": 912,
        "completion_tokens": 311,
        "cached_prompt_tokens": 0,
        "reasoning_tokens": 0,
        "finished": True,
        "cost_nusd": COST_NUSD,
        "failed_attempts": [],
        "latency_s": 1.234567,
    }
    return TurnRecord(
        decision_id=decision_id,
        summary=(0.1234567,) * SUMMARY_WIDTH,
        latest={"model": MODELS[1]},
        record=record,
        embedding=np.full(256, 0.1, dtype=np.float16).tobytes(),
        owner="team-a",
    )


class Load:
    """The operations of many turns, phase by phase, and what they cost."""

    def __init__(self, settings: Settings, ledgers: Sequence[Ledger], server: Server | None) -> None:
        self._ledgers, self._server, self._num_tasks = ledgers, server, settings.num_clients
        num_sessions = settings.num_turns // settings.turns_a_session
        self.sessions = [f"team-a:session-{number:08d}" for number in range(num_sessions)]
        self.turns = [
            (session_id, f"dec_{turn:02x}{number:030x}")
            for turn in range(settings.turns_a_session)
            for number, session_id in enumerate(self.sessions)
        ]

    async def open(self) -> Phase:
        return await self._phase(self.sessions, lambda ledger, name: ledger.open(name, BUDGET_NUSD))

    async def account(self) -> Phase:
        return await self._phase(self.turns, lambda ledger, turn: ledger.account(turn[0]))

    async def reserve(self) -> Phase:
        return await self._phase(
            self.turns,
            lambda ledger, turn: ledger.reserve(turn[0], f"{turn[1]}.0.0", MODELS[1], AMOUNT_NUSD, LEASE_S),
        )

    async def settle(self) -> Phase:
        return await self._phase(
            self.turns, lambda ledger, turn: ledger.settle(turn[0], f"{turn[1]}.0.0", COST_NUSD, turn=turn_of(turn[1]))
        )

    async def _phase(self, items: Sequence[Any], operation: Callable[[Ledger, Any], Awaitable[object]]) -> Phase:
        waiting = iter(items)

        async def work(ledger: Ledger) -> None:
            for item in waiting:  # shared: each task takes the next one
                await operation(ledger, item)

        server_s, caller_s, wall_s = self._server_cpu_s(), time.process_time(), time.perf_counter()
        await asyncio.gather(*(work(self._ledgers[task % len(self._ledgers)]) for task in range(self._num_tasks)))
        wall_s, caller_s = time.perf_counter() - wall_s, time.process_time() - caller_s
        server_s = self._server_cpu_s() - server_s
        num = len(items)
        return Phase(per_s=num / wall_s, caller_us=caller_s / num * 1e6, redis_us=server_s / num * 1e6)

    def _server_cpu_s(self) -> float:
        return 0.0 if self._server is None else cpu_s(self._server)


async def cost_of(settings: Settings, place: str, num_ledgers: int, server: Server | None) -> Measured:
    """The phases on an empty ledger, and how much it has grown a session and a turn."""
    ledgers = [await open_ledger(place) for _ in range(num_ledgers)]
    load, empty = Load(settings, ledgers, server), _num_bytes(place, server)
    phases = {"open": await load.open()}
    opened = _num_bytes(place, server)
    for name in ("account", "reserve", "settle"):
        phases[name] = await getattr(load, name)()
    full = _num_bytes(place, server)
    for ledger in ledgers:
        await ledger.close()
    of_turn = [phases[name] for name in ("account", "reserve", "settle")]
    return {
        "phases": {
            name: {key: round(value, 1) for key, value in asdict(phase).items()} for name, phase in phases.items()
        },
        "turns_per_s": round(1 / sum(1 / phase.per_s for phase in of_turn)),
        "redis_us_a_turn": round(sum(phase.redis_us for phase in of_turn), 1),
        "caller_us_a_turn": round(sum(phase.caller_us for phase in of_turn), 1),
        "bytes_a_session": round((opened - empty) / len(load.sessions)),
        "bytes_a_turn": round((full - opened) / len(load.turns)),
    }


def _num_bytes(place: str, server: Server | None) -> int:
    """Redis' memory in use, or the size of the file when all is in it."""
    if server is not None:
        return int(server.info("memory")["used_memory"])
    with sqlite3.connect(place) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return Path(place).stat().st_size


async def reads_of(place: str, folder: Path, num_turns: int) -> Measured:
    """How fast one process reads everything: the export for retraining, its import without Ray, and an audit."""
    ledger = await open_ledger(place)
    await ledger.add_feedback(Feedback(target=f"dec_00{0:030x}", judge="one", score=1.0, at_s=time.time()))
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    exported = await export_decisions(ledger, folder / "log.parquet")
    export_s, export_cpu_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s, time.process_time()
    report = await audit(ledger)
    audit_cpu_s = time.process_time() - cpu_s
    await ledger.close()
    cpu_s = time.process_time()
    logs, sessions = folder / "log.parquet", folder / "sessions.parquet"
    import_logs(ImportConfig(logs=(logs,), out=sessions, models=MODELS, runner="local"))
    cpu_s = time.process_time() - cpu_s
    if exported.num_turns != num_turns or report.num_wrong_sessions:
        raise SystemExit(f"the ledger is not what was written: {exported}, {report}")
    return {
        "export_turns_per_s": round(num_turns / export_s),
        "export_turns_per_cpu_s": round(num_turns / export_cpu_s),
        "audit_turns_per_cpu_s": round(num_turns / audit_cpu_s),
        "import_turns_per_cpu_s": round(num_turns / cpu_s),
    }


async def month_of(settings: Settings, place: str, server: Server) -> Measured:
    """What an audit of one account with very many attempts holds up: Redis does nothing else meanwhile."""
    ledger, name = await open_ledger(place), "month/2026-11/team-a"
    await ledger.open(name, BUDGET_NUSD)
    waiting = iter(range(settings.num_month_attempts))

    async def work() -> None:
        for number in waiting:
            await ledger.reserve(name, f"dec_{number:032x}.0.0.month", MODELS[1], AMOUNT_NUSD, LEASE_S)
            await ledger.settle(name, f"dec_{number:032x}.0.0.month", COST_NUSD)

    before, used_s = int(server.info("memory")["used_memory"]), cpu_s(server)
    await asyncio.gather(*(work() for _ in range(settings.num_clients)))
    grown, used_s = int(server.info("memory")["used_memory"]) - before, cpu_s(server) - used_s
    blocked_s = cpu_s(server)
    await ledger.books(name)
    blocked_s = cpu_s(server) - blocked_s
    await ledger.close()
    return {
        "month_redis_us_an_attempt": round(used_s / settings.num_month_attempts * 1e6, 1),
        "month_bytes_an_attempt": round(grown / settings.num_month_attempts),
        "month_read_us_an_attempt": round(blocked_s / settings.num_month_attempts * 1e6, 3),
    }


def load_cpu_s(server: RedisServer) -> float:
    """What a killed Redis computes until it answers again: it reads its whole file."""
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        while client.info("persistence")["loading"]:
            time.sleep(0.005)
        return cpu_s(client)


def cpu_s(server: Server) -> float:
    """Of Redis since it started."""
    used = server.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def sync_ms(folder: Path) -> float:
    """Median fdatasync of a write as large as a few settlements make."""
    path = folder / f"sync-{os.getpid()}"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    seconds = []
    for number in range(NUM_SYNCS):
        time.sleep(SYNC_PAUSE_S)
        os.pwrite(file, b"\x5a" * 16384, number * 16384)
        begun_s = time.perf_counter()
        os.fdatasync(file)
        seconds.append(time.perf_counter() - begun_s)
    os.close(file)
    path.unlink()
    return statistics.median(seconds) * 1e3


def on_redis(settings: Settings, num_ledgers: int, *, whole: bool) -> Measured:
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        server = RedisServer(Path(folder), **{"auto-aof-rewrite-percentage": "0"}).start()
        try:
            with redis.Redis.from_url(server.url) as client:
                measured = asyncio.run(cost_of(settings, server.url, num_ledgers, client))
                file_bytes = sum(path.stat().st_size for path in (Path(folder) / "appendonlydir").iterdir())
                measured["file_bytes_a_turn"] = round(file_bytes / settings.num_turns)
                if whole:
                    measured |= asyncio.run(reads_of(server.url, Path(folder), settings.num_turns))
                    measured["load_cpu_s_a_million_turns"] = round(load_cpu_s(server) / settings.num_turns * 1e6, 1)
            if whole:
                with redis.Redis.from_url(server.url) as client:
                    measured |= asyncio.run(month_of(settings, server.url, client))
        finally:
            server.kill()
    return measured


def on_sqlite(settings: Settings) -> Measured:
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        place = f"{folder}/ledger.sqlite"
        measured = asyncio.run(cost_of(settings, place, 1, None))
        return measured | asyncio.run(reads_of(place, Path(folder), settings.num_turns))


def main(settings: Settings) -> None:
    results = {
        "redis_many": on_redis(settings, settings.num_clients, whole=True),
        "redis_one": on_redis(settings, 1, whole=False),
        "sqlite": on_sqlite(settings),
        "sync_ms": round(sync_ms(settings.folder), 3),
        "num_turns": settings.num_turns,
        "load_1min": os.getloadavg()[0],
        "machine": machine(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
