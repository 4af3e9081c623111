"""Does a session ever spend more than its budget? Parallel clients, killed replicas, a killed ledger, a dead cluster.

    PYTHONPATH=. python benchmarks/chaos.py [--quick] [--seed 0] [--stores sqlite redis]

A provider that uses every token it may answers 64 parallel clients that share 5 sessions; a spent session is replaced
by a new one. Phases, each with both stores:

whole, stream  nothing fails
hang-ups       half of the clients hang up at any moment: every attempt is ended at once, none waits for its lease
kills          replicas, the Serve controller and Redis are killed with SIGKILL at random; the provider fails now and
               then and clients hang up; in the end everything is killed at once. After a restart and the leases' time,
               the ledger's books are compared with the provider's log and with what clients were told.
triple         the provider bills three times what was reserved: recorded in full, as overshoot
check-then-add the same harness on a ledger that looks first and adds after: it must fail

Servers: Ray Serve with two replicas; with --quick, and for check-then-add, two processes on uvicorn. Ends with one JSON
line; exit code 1 when a promise is broken or the broken ledger was not found out.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np
import tyro
from _books import billed_nusd, compare, least_nusd, prices_of, read_calls, wait_until_quiet
from _processes import machine
from _servers import RayServe, Server, UvicornReplicas, free_port
from _traffic import QUESTIONS, Traffic

from seqroute_ray.serving.config import ServingConfig, load_config
from seqroute_ray.serving.ledgers.factory import open_ledger
from tests.serving.fake_provider import running_fake_provider
from tests.serving.ledgers.redis_server import RedisServer
from tests.serving.support import random_artefact, settings, trio, write_settings

FAULTS = {
    "500": 0.02,
    "429": 0.01,
    "reset-before": 0.01,
    "reset-mid": 0.01,
    "truncated": 0.01,
    "stall-mid": 0.003,
    "no-usage": 0.01,
}
TIMEOUTS = {
    "upstream_timeout_s": 4.0,
    "upstream_first_byte_timeout_s": 3.0,
    "upstream_silence_timeout_s": 1.5,
    "lease_margin_s": 1.0,
    "reaper": {"interval_s": 1.0},
}
MAX_TOKENS = 400  # with kills and hang-ups: more than what is charged unseen
LEASES_S = 20.0  # within which every lease has run out and the reaper has come
MIN_EXHAUSTED = 0.3  # of the sessions of a phase with kills


@dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int = 0
    quick: bool = False  # fewer clients, seconds instead of minutes, uvicorn instead of Serve
    stores: tuple[str, ...] = ("sqlite", "redis")
    server: str = ""  # serve or uvicorn; "": serve, or uvicorn with --quick
    kill_s: float = 60.0  # of the phase with kills; --quick: 5
    calm_s: float = 12.0  # of each phase without; --quick: 2
    broken_ledger: bool = True  # also run check-then-add

    @property
    def kind(self) -> str:
        return self.server or ("uvicorn" if self.quick else "serve")

    @property
    def num_clients(self) -> int:
        return 16 if self.quick else 64

    @property
    def budget_usd(self) -> tuple[float, float]:
        return (0.001, 0.004) if self.quick else (0.003, 0.03)


@dataclass
class Bench:
    """One store with its server and provider."""

    chosen: Settings
    config: ServingConfig
    server: Server
    provider_url: str
    calls_log: Path
    redis: RedisServer | None
    rng: np.random.Generator
    kills: Counter[str] = field(default_factory=Counter)

    def traffic(self, name: str, stream_share: float, **more: Any) -> Traffic:
        return Traffic(
            base_urls=self.server.base_urls,
            rng=self.rng,
            name=name,
            num_clients=self.chosen.num_clients,
            num_live=5,
            budget_usd=self.chosen.budget_usd,
            stream_share=stream_share,
            **more,
        )

    async def set_faults(self, rates: dict[str, float]) -> None:
        url = self.provider_url.removesuffix("/v1") + "/faults"
        async with aiohttp.ClientSession(raise_for_status=True) as http, http.put(url, json=rates):
            pass

    async def calm(self, name: str, stream_share: float, **more: Any) -> dict[str, Any]:
        seconds = 2.0 if self.chosen.quick else self.chosen.calm_s
        return await self.measure(name, self.traffic(name, stream_share, **more), seconds)

    async def measure(self, name: str, traffic: Traffic, seconds: float, *, with_kills: bool = False) -> dict[str, Any]:
        """Run the traffic, then compare all books."""
        begun_s, num_before = time.monotonic(), len(read_calls(self.calls_log))
        self.kills.clear()
        killer = asyncio.create_task(self.kill_at_random(seconds)) if with_kills else None
        await traffic.run(seconds)
        if killer is not None:
            await killer
            await self.kill_everything(traffic)
        await wait_until_quiet(self.config, self.provider_url, LEASES_S)
        compared = await compare(self.config, traffic.sessions, read_calls(self.calls_log, num_before))
        report = {
            "phase": name,
            "requests": traffic.num_requests,
            "answered": traffic.outcomes["200"],
            "refused_402": traffic.outcomes["402"],
            "errors": traffic.errors,
            "samples": traffic.samples,
            "hung_up": traffic.outcomes["hung_up"],
            "kills": dict(self.kills),
            "keys_answered_twice": traffic.num_repeated_differently,
            **compared.to_json(),
            "seconds": round(time.monotonic() - begun_s, 1),
        }
        if with_kills:
            await self.set_faults({})
            report["spent_session_resumed"] = await self.resume(traffic)
        report["broken"] += broken_otherwise(report, with_kills)
        say(report)
        return report

    async def resume(self, traffic: Traffic) -> bool:
        """A session that was spent before everything was killed is still refused, and goes on with a raised budget."""
        body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": traffic.max_tokens}
        least_usd = least_nusd(prices_of(self.config)) / 1e9
        async with aiohttp.ClientSession(self.server.base_urls[0]) as http:
            for told in traffic.sessions:
                session = f"/v1/sessions/{quote(told.session_id)}"
                if not told.num_refused or (await (await http.get(session)).json())["remaining_usd"] >= least_usd:
                    continue
                headers = {"x-session-id": told.session_id}
                before = await http.post("/v1/chat/completions", json=body, headers=headers)
                put = await http.put(session, json={"budget_usd": (told.budget_nusd + 10**7) / 1e9})
                after = await http.post("/v1/chat/completions", json=body, headers=headers)
                return (before.status, put.status, after.status) == (402, 200, 200)
        return False

    async def kill_at_random(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        mean_gap_s = 1.2 if self.chosen.quick else 5.0  # a replica of Serve takes as long to start
        order: list[str] = []
        while True:
            gap_s = self.rng.uniform(0.5, 1.5) * mean_gap_s
            if time.monotonic() + gap_s > until_s:
                return
            await asyncio.sleep(gap_s)
            order = order or [str(each) for each in self.rng.permutation(self.killable)]
            what = order.pop()
            while not (killed := await asyncio.to_thread(self.kill, what)) and time.monotonic() < until_s:
                await asyncio.sleep(0.5)
            self.kills[what] += killed
            say({"killed": what if killed else None})

    @property
    def killable(self) -> list[str]:
        others = (["controller"] if isinstance(self.server, RayServe) else []) + (["redis"] if self.redis else [])
        return ["replica", "replica", *others]

    def kill(self, what: str) -> bool:
        if what == "redis" and self.redis is not None:
            self.redis.kill()
            self.redis.start()
            return True
        return self.server.kill(what, self.rng)

    async def kill_everything(self, traffic: Traffic) -> None:
        """While clients wait for answers: all replicas and the ledger at once; then start them again."""
        running = asyncio.create_task(traffic.run(2.0))
        await asyncio.sleep(1.0)
        await asyncio.to_thread(self.server.kill_all)
        if self.redis is not None:
            self.redis.kill()
            self.redis.start()
        self.kills["everything"] += 1
        await running
        await asyncio.to_thread(self.server.start)

    async def triple(self) -> dict[str, Any]:
        """One turn whose bill is three times its reservation."""
        await self.set_faults({"triple": 1.0})
        num_before = len(read_calls(self.calls_log))
        traffic = self.traffic("triple", 0.0, max_sessions=1)
        traffic.num_clients, traffic.num_live = 1, 1
        await traffic.run(0.5)
        await self.set_faults({})
        billed = sum(billed_nusd(call, prices_of(self.config)) for call in read_calls(self.calls_log, num_before))
        ledger = await open_ledger(self.config.ledger)
        books = await ledger.books("local:triple-0")
        await ledger.close()
        reserved = sum(attempt.amount_nusd for attempt in books.attempts)
        report = {
            "phase": "triple",
            "answered": traffic.outcomes["200"],
            "refused_402": traffic.outcomes["402"],
            "billed_nusd": billed,
            "reserved_nusd": reserved,
            "spent_nusd": books.account.spent_nusd,
            "overshoot_nusd": books.account.overshoot_nusd,
        }
        recorded = books.account.spent_nusd == billed and books.account.overshoot_nusd == billed - reserved > 0
        report["broken"] = [] if recorded else ["triple bill not recorded in full"]
        say(report)
        return report


def broken_otherwise(report: dict[str, Any], with_kills: bool) -> list[str]:
    """Promises beside those of the books."""
    broken = ["keys_answered_twice"] if report["keys_answered_twice"] else []
    if not report.get("spent_session_resumed", True):
        broken.append("a spent session was not refused, or not resumed by a raised budget")
    if not with_kills and report["errors"]:
        broken.append("errors")
    if not with_kills and report["expired_attempts"]:
        broken.append("an attempt was left to its lease though nothing was killed")
    if with_kills and report["num_exhausted"] < MIN_EXHAUSTED * report["num_sessions"]:
        broken.append("too few sessions ran out of money to tell")
    return broken


@contextmanager
def running_bench(chosen: Settings, store: str, folder: Path, kind: str, *flags: str) -> Iterator[Bench]:
    folder.mkdir()
    calls_log, rng = folder / "calls.jsonl", np.random.default_rng(chosen.seed)
    with ExitStack() as stack:
        provider_flags = ("--seed", str(chosen.seed), "--delay-s", "0.02", "--chunk-delay-s", "0.02")
        url = stack.enter_context(running_fake_provider("--calls-log", str(calls_log), *provider_flags))
        calls_log.touch()
        fields = settings(folder, random_artefact(trio(), seed=chosen.seed), url) | TIMEOUTS
        redis = None
        if store == "redis":
            redis = RedisServer(folder).start()
            stack.callback(redis.stop)
            fields["ledger"] = redis.url
        path = write_settings(folder, fields)
        server = make_server(kind, path, flags)
        stack.callback(server.stop)
        server.start()
        yield Bench(chosen, load_config(path), server, url, calls_log, redis, rng)


def make_server(kind: str, config: Path, flags: tuple[str, ...]) -> Server:
    if kind == "serve":
        return RayServe(config, free_port(), {"num_replicas": 2})
    return UvicornReplicas(config, [free_port(), free_port()], *flags)


async def run_store(bench: Bench, store: str) -> list[dict[str, Any]]:
    chosen, name = bench.chosen, f"{store}/{bench.chosen.kind}"
    reports = [await bench.calm(f"{name}/whole", 0.0), await bench.calm(f"{name}/stream", 1.0)]
    hanging_up = {"hang_up_share": 0.5, "hang_up_within_s": 0.4, "max_tokens": MAX_TOKENS}
    reports.append(await bench.calm(f"{name}/hang-ups", 0.7, **hanging_up))
    await bench.set_faults(FAULTS)
    traffic = bench.traffic(f"{name}/kills", 0.5, hang_up_share=0.05, key_share=0.1, max_tokens=MAX_TOKENS)
    kill_s = 5.0 if chosen.quick else chosen.kill_s
    reports.append(await bench.measure(f"{name}/kills", traffic, kill_s, with_kills=True))
    return [*reports, await bench.triple()]


def main(chosen: Settings) -> int:
    begun_s, reports = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        for store in chosen.stores:
            with running_bench(chosen, store, Path(scratch) / store, chosen.kind) as bench:
                reports += asyncio.run(run_store(bench, store))
        broken = [f"{report['phase']}: {what}" for report in reports for what in report["broken"]]
        if chosen.broken_ledger:
            with running_bench(chosen, "sqlite", Path(scratch) / "broken", "uvicorn", "--check-then-add") as bench:
                found = asyncio.run(bench.calm("check-then-add", 0.0))
            reports.append(found | {"must_fail": True})
            if not {"overshoot_nusd", "ledger_overshoot_nusd"} <= set(found["broken"]):
                broken.append("check-then-add was not found out")
    seconds = round(time.monotonic() - begun_s)
    settled = {"seed": chosen.seed, "machine": machine(), "wall_s": seconds}
    print(json.dumps({"broken": broken, "phases": reports, **settled}))
    return 1 if broken else 0


def say(report: dict[str, Any]) -> None:
    print(json.dumps(report), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
