"""What routing costs a request: CPU and latency against a bare pass-through and the LiteLLM proxy, interleaved.

    python benchmarks/serve.py [--num-rounds N] [--sessions N] [--policy DIR] [--litellm-venv DIR]

The provider answers at once, so all that is measured is the way there. CPU is of all processes of a server (on Serve:
Ray's, HAProxy's and the replica's, less what they use when nobody asks). Sessions have eight turns and a budget; so has
LiteLLM (max_budget_per_session of an agent), in a virtual environment of its own, made with pip at the first run.
Ends with one JSON line.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import ray  # noqa: F401 - brings psutil along
import tyro
import yaml
from _processes import machine

import psutil  # isort: skip

from seqroute_ray.core.embedding import load_embedder
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.serving.config import UpstreamConfig
from seqroute_ray.serving.ledgers.factory import open_ledger
from seqroute_ray.serving.new_key import NewKeyConfig, new_key
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.router import Prompt, Router, Wish

HERE = Path(__file__).parent
QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many did she sell in all? "
)
TURNS = 8  # of a session
LITELLM = "litellm[proxy]==1.108.7"
LITELLM_AUTH = """
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.agent_endpoints.agent_registry import global_agent_registry

async def authenticate(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, agent_id=global_agent_registry.agent_list[0].agent_id)
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_rounds: int = 5
    sessions: int = 192  # of TURNS requests, of one server in one round
    concurrency: int = 8
    policy: Path = Path("runs/quickstart/policy")
    litellm_venv: Path | None = Path("runs/litellm-venv")  # none: without LiteLLM
    with_serve: bool = True  # also on Ray Serve with HAProxy
    seed: int = 0


@dataclass
class Server:
    """One of the servers, and what was measured of it."""

    name: str
    base_url: str
    headers: dict[str, str]
    process: psutil.Process
    session_in_body: bool = False
    idle_cpu_per_s: float = 0.0
    cpu_ms: list[float] = field(default_factory=list)  # a request, one a round
    latencies_ms: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        total = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            try:
                total += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        return total


@contextmanager
def started(command: list[str], log: Path, **env: str) -> Iterator[psutil.Process]:
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **env})
    try:
        yield psutil.Process(process.pid)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            if "litellm" in " ".join(child.cmdline()):
                child.terminate()
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def our_settings(settings: Settings, folder: Path, upstream: str, name: str) -> tuple[Path, dict[str, str]]:
    """A settings file with one API key, and the headers of a client."""
    artefact = PolicyArtefact.load(settings.policy)
    made = new_key(NewKeyConfig(id="benchmark"))
    fields = {
        "policy": {"artefact": str(settings.policy.absolute())},
        "ledger": str(folder / f"{name}.sqlite"),
        "keys": [made["entry"]],
        "default_budget_usd": 1.0,
        "upstreams": [
            {
                "model": model.name,
                "base_url": upstream,
                "usd_per_m_input": model.usd_per_m_input,
                "usd_per_m_output": model.usd_per_m_output,
            }
            for model in artefact.catalog.models
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path, {"authorization": f"Bearer {made['key']}"}


def litellm_python(venv: Path) -> Path:
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", LITELLM], check=True, stdout=sys.stderr)
    return python


def litellm_config(folder: Path, upstream: str) -> Path:
    (folder / "seqroute_bench_auth.py").write_text(LITELLM_AUTH)
    path = folder / "litellm.yaml"
    params = {"model": "openai/m", "api_base": upstream, "api_key": "none"}
    price = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}
    config = {
        "model_list": [{"model_name": "m", "litellm_params": {**params, **price}}],
        "agents": [
            {
                "agent_name": "bench",
                "agent_card_params": {"name": "bench", "url": "http://127.0.0.1", "version": "1"},
                "litellm_params": {"max_budget_per_session": 1.0},
            }
        ],
        "general_settings": {
            "custom_auth": "seqroute_bench_auth.authenticate",
            "master_key": f"sk-{secrets.token_hex(16)}",
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path


def start_all(settings: Settings, stack: ExitStack, folder: Path) -> list[Server]:
    servers, python = [], sys.executable
    helper, upstream_port = str(HERE / "_overhead_servers.py"), free_port()
    upstream = f"http://127.0.0.1:{upstream_port}/v1"
    stack.enter_context(started([python, helper, "provider", str(upstream_port)], folder / "provider.log"))

    def add(name: str, command: list[str], port: int, headers: dict[str, str], **env: str) -> Server:
        print(f"starting {name} ...", file=sys.stderr, flush=True)
        process = stack.enter_context(started(command, folder / f"{name}.log", **env))
        servers.append(Server(name, f"http://127.0.0.1:{port}", headers, process))
        return servers[-1]

    port = free_port()
    add("bare", [python, helper, "bare", str(port), upstream], port, {})
    serve = [python, "-m", "seqroute_ray.cli", "serve"]
    port, (config, headers) = free_port(), our_settings(settings, folder, upstream, "uvicorn")
    add("uvicorn", [*serve, "--config", str(config), "--port", str(port), "--server", "uvicorn"], port, headers)
    if settings.with_serve:
        port, (config, headers) = free_port(), our_settings(settings, folder, upstream, "serve")
        command = [*serve, "--config", str(config), "--port", str(port), "--host", "0.0.0.0"]
        add("serve", command, port, headers, RAY_SERVE_ENABLE_HA_PROXY="1")
    if settings.litellm_venv:
        port, litellm = free_port(), litellm_python(settings.litellm_venv)
        command = [
            str(litellm.parent / "litellm"),
            "--config",
            str(litellm_config(folder, upstream)),
            "--port",
            str(port),
        ]
        server = add(
            "litellm",
            command,
            port,
            {"authorization": "Bearer sk-1"},
            PYTHONPATH=str(folder),
            LITELLM_LOCAL_MODEL_COST_MAP="True",
            LITELLM_LOG="ERROR",
        )
        server.session_in_body = True
    return servers


async def wait_until_up(server: Server) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(240):
            if not server.process.is_running() or server.process.status() == psutil.STATUS_ZOMBIE:
                break
            try:
                if (await one(http, server, 0))[0] == 200:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise SystemExit(f"{server.name} does not answer; see its log")


async def one(http: aiohttp.ClientSession, server: Server, number: int) -> tuple[int, float]:
    """A turn of the session of this number: status, and latency in ms."""
    session = f"{server.name}-{os.getpid()}-{number}"
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 400}
    headers = {**server.headers, "x-session-id": session}
    if server.session_in_body:
        body["metadata"] = {"session_id": session}
    elif server.name != "bare":
        body["model"] = "seqroute"
    began_s = time.perf_counter()
    async with http.post(f"{server.base_url}/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status, (time.perf_counter() - began_s) * 1e3


async def load(server: Server, settings: Settings, first: int, num_sessions: int) -> list[float]:
    """Latencies in ms. A client has one session at a time, and its turns one after the other.

    Raises SystemExit on any answer but 200.
    """
    numbers, latencies = iter(range(first, first + num_sessions)), list[float]()

    async def client(http: aiohttp.ClientSession) -> None:
        for number in numbers:
            for _ in range(TURNS):
                status, latency_ms = await one(http, server, number)
                if status != 200:
                    raise SystemExit(f"{server.name} answered {status}")
                latencies.append(latency_ms)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(client(http) for _ in range(settings.concurrency)))
    return latencies


async def measure(servers: list[Server], settings: Settings) -> None:
    for server in servers:
        await wait_until_up(server)
        await load(server, settings, 0, 40)  # warm
    for server in servers:
        before_s, began_s = server.cpu_s(), time.perf_counter()
        await asyncio.sleep(5)
        server.idle_cpu_per_s = (server.cpu_s() - before_s) / (time.perf_counter() - began_s)
    for number in range(settings.num_rounds):
        for server in servers:
            first = 1000 + number * settings.sessions
            before_s, began_s = server.cpu_s(), time.perf_counter()
            server.latencies_ms += await load(server, settings, first, settings.sessions)
            idle_s = server.idle_cpu_per_s * (time.perf_counter() - began_s)
            server.cpu_ms.append((server.cpu_s() - before_s - idle_s) / (settings.sessions * TURNS) * 1e3)
            print(f"round {number} {server.name} {server.cpu_ms[-1]:.2f} ms CPU a request", file=sys.stderr, flush=True)


def decision_ms(settings: Settings, num_decisions: int = 3000) -> tuple[float, float]:
    """p50 and p99 of encoding a prompt, estimating and deciding, one at a time."""
    artefact = PolicyArtefact.load(settings.policy)
    pricing = [
        Pricing.of(
            UpstreamConfig(
                model=model.name,
                base_url="http://h/v1",
                usd_per_m_input=model.usd_per_m_input,
                usd_per_m_output=model.usd_per_m_output,
            )
        )
        for model in artefact.catalog.models
    ]
    router = Router(artefact, load_embedder(artefact.embedder), pricing)
    account, prompt, rng = Account("s", 10**9), Prompt(tokens=40, tokens_bound=60), np.random.default_rng(settings.seed)
    words, times = QUESTION.split(), []
    for _ in range(num_decisions):
        text = " ".join(rng.permutation(words))
        began_s = time.perf_counter()
        router.choose(router.embed(text), account, prompt, Wish())
        times.append((time.perf_counter() - began_s) * 1e3)
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))


async def reserve_over_fdatasync(folder: Path, num_pairs: int = 500) -> tuple[float, float]:
    """p50 of a reservation and of a bare fdatasync of a page in the same folder, in ms, in turn."""
    ledger = await open_ledger(folder / "reserve.sqlite")
    await ledger.open("s", 10**12)
    reserved, synced = [], []
    with (folder / "page").open("wb") as page:
        for number in range(num_pairs):
            began_s = time.perf_counter()
            await ledger.reserve("s", f"a{number}", "m", 1000, 60.0)
            reserved.append(time.perf_counter() - began_s)
            page.write(os.urandom(4096))
            page.flush()
            began_s = time.perf_counter()
            os.fdatasync(page.fileno())
            synced.append(time.perf_counter() - began_s)
    await ledger.close()
    return float(np.median(reserved) * 1e3), float(np.median(synced) * 1e3)


def main(settings: Settings) -> None:
    folder = Path(tempfile.mkdtemp(prefix="seqroute-serve-"))
    with ExitStack() as stack:
        servers = start_all(settings, stack, folder)
        asyncio.run(measure(servers, settings))
    p50_ms, p99_ms = decision_ms(settings)
    reserve_ms, fdatasync_ms = asyncio.run(reserve_over_fdatasync(folder))
    cpu = {server.name: np.array(server.cpu_ms) for server in servers}

    def ratio(name: str, other: str) -> dict[str, float] | None:
        if name not in cpu:
            return None
        ratios = cpu[name] / cpu[other]
        return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}

    over_bare, serve_over_bare, over_ours = (
        ratio("uvicorn", "bare"),
        ratio("serve", "bare"),
        ratio("litellm", "uvicorn"),
    )
    result = {
        "cpu_over_bare": over_bare and over_bare["median"],
        "serve_cpu_over_bare": serve_over_bare and serve_over_bare["median"],
        "litellm_cpu_over_ours": over_ours and over_ours["median"],
        "decision_p50_ms": p50_ms,
        "decision_p99_ms": p99_ms,
        "reserve_over_fdatasync": reserve_ms / fdatasync_ms,
        "reserve_p50_ms": reserve_ms,
        "fdatasync_p50_ms": fdatasync_ms,
        "ranges": {
            "cpu_over_bare": over_bare,
            "serve_cpu_over_bare": serve_over_bare,
            "litellm_cpu_over_ours": over_ours,
        },
        "servers": {
            server.name: {
                "cpu_ms": float(np.median(server.cpu_ms)),
                "p50_ms": float(np.percentile(server.latencies_ms, 50)),
                "p99_ms": float(np.percentile(server.latencies_ms, 99)),
                "idle_cpu_per_s": server.idle_cpu_per_s,
            }
            for server in servers
        },
        "rounds": settings.num_rounds,
        "sessions": settings.sessions,
        "seed": settings.seed,
        "machine": machine(),
    }
    shutil.rmtree(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
