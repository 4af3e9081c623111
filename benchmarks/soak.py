"""Does a server stay as it began? Minutes at half its capacity, with new sessions all the time: memory and errors.

    PYTHONPATH=. python benchmarks/soak.py [--soak-s 300] [--server uvicorn|serve] [--seed 0]

One replica on SQLite. Its saturation rate is measured first, with clients that never pause. Then requests come at half
of it, evenly; a third of the answers are streams, a tenth have idempotency keys, and a session ends after a few turns.
Memory is the replica's resident set once a second; its growth is the median of the last tenth over that of the first
tenth after a warm-up. Ends with one JSON line; exit code 1 when memory grew by more than 5 %, a request failed, or the
books are wrong.
"""

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from _books import compare, read_calls, wait_until_quiet
from _processes import machine
from _servers import RayServe, Server, UvicornReplicas, free_port
from _traffic import Traffic

from seqroute_ray.serving.config import load_config
from tests.serving.fake_provider import running_fake_provider
from tests.serving.support import random_artefact, settings, trio, write_settings

MAX_GROWTH = 0.05
TURNS_PER_SESSION = 6
NUM_CLIENTS = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    soak_s: float = 300.0
    warm_up_s: float = 60.0
    saturate_s: float = 15.0
    server: Literal["uvicorn", "serve"] = "uvicorn"
    seed: int = 0


def traffic(base_urls: list[str], name: str, rng: np.random.Generator, rate_per_s: float) -> Traffic:
    return Traffic(
        base_urls=base_urls,
        rng=rng,
        name=name,
        num_clients=NUM_CLIENTS,
        num_live=NUM_CLIENTS,
        budget_usd=(0.1, 0.2),
        stream_share=1 / 3,
        key_share=0.1,
        max_tokens=32,
        turns_per_session=TURNS_PER_SESSION,
        rate_per_s=rate_per_s,
    )


def rss_mb(pids: list[int]) -> float:
    """Of all these processes together."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts) / 1024


def make_server(chosen: Settings, config: Path) -> Server:
    if chosen.server == "serve":
        return RayServe(config, free_port(), {"num_replicas": 1})
    return UvicornReplicas(config, [free_port()])


async def watch(pids: list[int], samples: list[float]) -> None:
    while True:
        samples.append(rss_mb(pids))
        await asyncio.sleep(1.0)


async def measure(chosen: Settings, folder: Path) -> dict[str, Any]:
    rng, calls_log = np.random.default_rng(chosen.seed), folder / "calls.jsonl"
    with running_fake_provider("--calls-log", str(calls_log)) as url:
        calls_log.touch()
        path = write_settings(folder, settings(folder, random_artefact(trio(), seed=chosen.seed), url))
        server = make_server(chosen, path)
        try:
            await asyncio.to_thread(server.start)
            pids = server.processes("replica")
            warm = traffic(server.base_urls, "saturation", rng, 0.0)
            await warm.run(chosen.saturate_s)
            saturation_per_s = warm.outcomes["200"] / chosen.saturate_s
            say(saturation_per_s=saturation_per_s, errors=warm.errors)
            soak = traffic(server.base_urls, "soak", rng, saturation_per_s / 2)
            samples: list[float] = []
            watching = asyncio.create_task(watch(pids, samples))
            await soak.run(chosen.soak_s)
            watching.cancel()
            await wait_until_quiet(load_config(path), url, 10.0)
        finally:
            await asyncio.to_thread(server.stop)
    told = warm.sessions + soak.sessions
    compared = await compare(load_config(path), told, read_calls(calls_log))
    return report_of(chosen, soak, saturation_per_s, samples, compared.broken)


def report_of(
    chosen: Settings, soak: Traffic, saturation_per_s: float, samples: list[float], broken: list[str]
) -> dict[str, Any]:
    after = samples[int(chosen.warm_up_s) :]
    tenth = max(1, len(after) // 10)
    begin_mb, end_mb = float(np.median(after[:tenth])), float(np.median(after[-tenth:]))
    growth = end_mb / begin_mb - 1
    checks = {"memory grows": growth > MAX_GROWTH, "errors": bool(soak.errors), **dict.fromkeys(broken, True)}
    return {
        "broken": [name for name, is_so in checks.items() if is_so],
        "server": chosen.server,
        "saturation_per_s": round(saturation_per_s, 1),
        "rate_per_s": round(soak.outcomes["200"] / chosen.soak_s, 1),
        "requests": soak.num_requests,
        "answered": soak.outcomes["200"],
        "errors": soak.errors,
        "samples": soak.samples,
        "sessions": len(soak.sessions),
        "latency_ms": {
            name: round(1e3 * float(np.quantile(soak.latency_s, q)), 1) for name, q in (("p50", 0.5), ("p99", 0.99))
        },
        "rss_mb": {"first": round(samples[0], 1), "warm": round(begin_mb, 1), "end": round(end_mb, 1)},
        "growth": round(growth, 4),
        "rss_mb_every_20_s": [round(each, 1) for each in samples[::20]],
    }


def main(chosen: Settings) -> int:
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        report = asyncio.run(measure(chosen, Path(scratch)))
    report |= {"seed": chosen.seed, "machine": machine(), "wall_s": round(time.monotonic() - begun_s)}
    print(json.dumps(report))
    return 1 if report["broken"] else 0


def say(**fields: Any) -> None:
    print(json.dumps(fields), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
