"""Ray Serve behind HAProxy: load brings three replicas, idleness leaves one, and no open stream notices.

    PYTHONPATH=. python benchmarks/autoscale.py [--seed 0]

Clients ask until three replicas run. Then they stop, and long streams that were opened meanwhile go on while replicas
are taken away. Ends with one JSON line, with the numbers of replicas by state as they changed; exit code 1 when the
replicas did not go up and down, a stream broke off, a request failed or a session overspent.
"""

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _books import compare, read_calls, wait_until_quiet
from _processes import machine
from _servers import RayServe, free_port
from _traffic import Traffic

from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.haproxy import HAPROXY_VARIABLE
from seqroute_ray.serving.new_key import NewKeyConfig, new_key
from tests.serving.fake_provider import running_fake_provider
from tests.serving.support import random_artefact, settings, trio, write_settings

OWNER = "bench"
MIN_REPLICAS, MAX_REPLICAS = 1, 3
SCALING = {
    "min_replicas": MIN_REPLICAS,
    "max_replicas": MAX_REPLICAS,
    "target_ongoing_requests": 8,
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
}
PATIENCE_S = 90.0  # for replicas to come; to go, they first drain
STREAM_TOKENS, TOKENS_PER_CHUNK, CHUNK_DELAY_S = 2000, 8, 0.16  # 40 s a stream


@dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int = 0
    num_clients: int = 48
    num_streams: int = 9


@dataclass
class Scene:
    """The server under load."""

    chosen: Settings
    server: RayServe
    headers: dict[str, str]
    rng: np.random.Generator
    marks: list[dict[str, Any]] = field(default_factory=list)

    def traffic(self, name: str, num_clients: int, stream_share: float, max_tokens: int) -> Traffic:
        return Traffic(
            base_urls=self.server.base_urls,
            rng=self.rng,
            name=name,
            num_clients=num_clients,
            num_live=num_clients,
            budget_usd=(0.5, 1.0),
            stream_share=stream_share,
            max_tokens=max_tokens,
            headers=self.headers,
            no_answer_s=120.0,
        )

    def mark(self, what: str) -> None:
        self.marks.append({"at_s": self.server.now_s(), "mark": what})
        print(json.dumps(self.marks[-1]), file=sys.stderr, flush=True)

    async def wait_for(self, num_replicas: int) -> bool:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if self.server.timeline and self.server.timeline[-1]["replicas"] == {"RUNNING": num_replicas}:
                return True
            await asyncio.sleep(0.2)
        return False

    async def play(self) -> tuple[list[Traffic], bool, bool]:
        """The traffic, whether replicas came, and whether they went."""
        load = self.traffic("load", self.chosen.num_clients, 0.0, 64)
        streams = self.traffic("stream", self.chosen.num_streams, 1.0, STREAM_TOKENS)
        self.mark("load begins")
        loading = asyncio.create_task(load.run(2 * PATIENCE_S))
        came = await self.wait_for(MAX_REPLICAS)
        await asyncio.sleep(3)
        self.mark("streams begin")
        streaming = asyncio.create_task(streams.run(0.5))
        await asyncio.sleep(3)
        load.stop()
        await loading
        self.mark("load ends")
        await streaming
        self.mark("streams end")
        went = await self.wait_for(MIN_REPLICAS)
        self.mark("idle")
        return [load, streams], came, went

    def num_running(self, begin_s: float, end_s: float) -> list[int]:
        """Numbers of running replicas that were seen between two moments."""
        states = [each for each in self.server.timeline if begin_s <= each["at_s"] <= end_s]
        return [each["replicas"].get("RUNNING", 0) for each in states]


async def measure(chosen: Settings, folder: Path) -> dict[str, Any]:
    made, calls_log = new_key(NewKeyConfig(id=OWNER)), folder / "calls.jsonl"
    flags = ["--calls-log", str(calls_log), "--delay-s", "0.3", "--chunk-delay-s", str(CHUNK_DELAY_S)]
    with running_fake_provider(*flags, "--tokens-per-chunk", str(TOKENS_PER_CHUNK)) as url:
        calls_log.touch()
        fields = settings(folder, random_artefact(trio(), seed=chosen.seed), url) | {"keys": [made["entry"]]}
        path = write_settings(folder, fields)
        server = RayServe(path, free_port(), {"autoscaling_config": SCALING}, **haproxy_env(folder))
        scene = Scene(chosen, server, {"authorization": f"Bearer {made['key']}"}, np.random.default_rng(chosen.seed))
        try:
            await asyncio.to_thread(server.start)
            traffics, came, went = await scene.play()
            await wait_until_quiet(load_config(path), url, 10.0)
        finally:
            await asyncio.to_thread(server.stop)
        told = [each for traffic in traffics for each in traffic.sessions]
        compared = await compare(load_config(path), told, read_calls(calls_log), OWNER)
    begin_s, end_s = (
        next(m["at_s"] for m in scene.marks if m["mark"] == each) for each in ("load ends", "streams end")
    )
    fewest = min(scene.num_running(begin_s, end_s), default=MAX_REPLICAS)
    load, streams = traffics
    checks = {
        "replicas did not come": not came,
        "replicas did not go": not went,
        "no replica went while streams ran": fewest >= MAX_REPLICAS,
        "a stream broke off": streams.outcomes["200"] < chosen.num_streams,
        "requests failed": bool(load.errors or streams.errors),
        **dict.fromkeys(compared.broken, True),
    }
    return {
        "broken": [name for name, is_so in checks.items() if is_so],
        "requests": load.num_requests + streams.num_requests,
        "answered": load.outcomes["200"],
        "streams_whole": streams.outcomes["200"],
        "stream_s": round(float(np.median(streams.latency_s)), 1) if streams.latency_s else None,
        "errors": load.errors | streams.errors,
        "samples": load.samples | streams.samples,
        "fewest_replicas_while_streaming": fewest,
        "timeline": sorted([*scene.marks, *server.timeline], key=lambda each: each["at_s"]),
        "books": compared.to_json(),
    }


def haproxy_env(folder: Path) -> dict[str, str]:
    """HAProxy on, with files and ports of its own: their defaults are one for the machine."""
    return {
        HAPROXY_VARIABLE: "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


def main(chosen: Settings) -> int:
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autoscale-") as scratch:
        report = asyncio.run(measure(chosen, Path(scratch)))
    report |= {"seed": chosen.seed, "machine": machine(), "wall_s": round(time.monotonic() - begun_s)}
    print(json.dumps(report))
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
