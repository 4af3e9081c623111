"""Serving by two replicas on two nodes, one of which dies: every request is answered in the end, and paid once."""

import asyncio
import math
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from _books import compare, read_calls, wait_until_quiet
from _servers import is_ready
from _traffic import DONE, QUESTIONS, Told, told_nusd

from seqroute_ray.serving.config import load_config
from tests.cluster.nodes import Command, Nodes, WorkerNode, wait_until
from tests.serving.fake_provider import running_fake_provider
from tests.serving.ledgers.redis_server import RedisServer
from tests.serving.support import free_port, random_artefact, settings, trio, write_settings

pytestmark = pytest.mark.cluster
NUM_CLIENTS, BUDGET_NUSD = 12, 20_000_000  # of a session
REPLICA = "ray::ServeReplica"
ANSWERS_BEFORE = 8  # of each replica, until one dies: by then both have half of the streams
TURNS_AFTER = 5  # of each client, once there is a new replica
PAUSE_S = 0.1  # after a failure
PATIENCE_S = 120.0  # of a client with one request
LEASES_S = 30.0
TIMEOUTS = {"upstream_timeout_s": 8.0, "lease_margin_s": 1.0, "reaper": {"interval_s": 1.0}}


@dataclass
class Client:
    """One that asks until it is answered, mostly for streams; a spent session is followed by a new one."""

    base_url: str
    number: int
    sessions: list[Told] = field(default_factory=list)
    num_turns: int = 0
    num_wanted: float = math.inf  # turns, until it stops
    failures: Counter[str] = field(default_factory=Counter)

    async def turn(self, http: aiohttp.ClientSession) -> None:
        if not self.sessions or self.sessions[-1].num_refused:
            self.sessions.append(Told(f"client-{self.number}-{len(self.sessions)}", BUDGET_NUSD))
        told, stream = self.sessions[-1], (self.number + self.num_turns) % 4 != 0
        headers = {"x-session-id": told.session_id, "x-session-budget-usd": f"{BUDGET_NUSD / 1e9:.9f}"}
        headers["idempotency-key"] = f"{self.number}-{self.num_turns}"
        question = QUESTIONS[self.num_turns % len(QUESTIONS)]
        max_tokens = 160 + 16 * self.number  # of another length than others' streams: not all end at once
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens, "stream": stream}
        async with asyncio.timeout(PATIENCE_S):
            while not await self._ask(http, told, body, headers):
                await asyncio.sleep(PAUSE_S)
        self.num_turns += 1

    async def _ask(
        self, http: aiohttp.ClientSession, told: Told, body: dict[str, Any], headers: dict[str, str]
    ) -> bool:
        """True when that was the answer."""
        try:
            url = f"{self.base_url}/v1/chat/completions"
            async with http.post(url, json=body, headers=headers) as response:
                raw = await response.read()
        except aiohttp.ClientError as error:
            self.failures[type(error).__name__] += 1
            return False
        if response.status == 402:
            told.num_refused += 1
            return True
        if response.status != 200 or (body["stream"] and not raw.endswith(DONE)):
            self.failures[str(response.status)] += 1
            return False
        told.decisions.append(response.headers["x-seqroute-decision"])
        told.cost_nusd += told_nusd(raw, body["stream"])
        return True

    async def turns(self) -> None:
        async with aiohttp.ClientSession() as http:
            while self.num_turns < self.num_wanted:
                await self.turn(http)


def serve_config(folder: Path, settings_path: Path, port: int) -> Path:
    """Of `serve run`; a replica takes a CPU, and so a node."""
    application = {
        "name": "seqroute",
        "route_prefix": "/",
        "import_path": "seqroute_ray.serving.app:build_app",
        "args": {"config": str(settings_path)},
        "deployments": [{"name": "SeqRoute", "num_replicas": 2}],
    }
    fields = {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(fields | {"applications": [application]}))
    return path


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    server = RedisServer(folder).start()
    try:
        yield server.url
    finally:
        server.stop()


def num_answers(node: WorkerNode) -> int:
    """Of its replica; each is a line of the access log."""
    lines = node.errors_of(REPLICA).replace(" ", "").splitlines()
    return sum('"route":"/v1/chat/completions","status":200' in line for line in lines)


def stop(command: Command) -> None:
    """As Ctrl-C does: Serve leaves the cluster."""
    command.process.send_signal(signal.SIGINT)
    command.ended()


@contextmanager
def at_work(clients: list[Client]) -> Iterator[None]:
    """Clients that ask while the block runs, and TURNS_AFTER times more."""

    async def all_turns() -> None:
        await asyncio.gather(*(client.turns() for client in clients))

    with ThreadPoolExecutor(1) as pool:
        # Not the other way round: a node ends with the thread that has started it.
        running = pool.submit(asyncio.run, all_turns())
        try:
            yield
        finally:
            for client in clients:
                client.num_wanted = client.num_turns + TURNS_AFTER
        running.result()


def test_no_request_is_lost_when_a_node_with_a_replica_dies(
    nodes: Nodes, workers: list[WorkerNode], tmp_path: Path
) -> None:
    calls_log, port = tmp_path / "calls.jsonl", free_port()
    calls_log.touch()
    base_url = f"http://127.0.0.1:{port}"
    delays = ("--delay-s", "0.05", "--chunk-delay-s", "0.05")
    with running_fake_provider("--calls-log", str(calls_log), *delays) as provider, redis(tmp_path) as ledger:
        fields = {**settings(tmp_path, random_artefact(trio()), provider), **TIMEOUTS, "ledger": ledger}
        path = write_settings(tmp_path, fields)
        with nodes.command("ray.serve.scripts", "run", serve_config(tmp_path, path, port)) as server:
            server.until(lambda: is_ready(base_url))
            clients = [Client(base_url, number) for number in range(NUM_CLIENTS)]
            with at_work(clients):
                server.until(lambda: min(map(num_answers, workers)) >= ANSWERS_BEFORE)
                nodes.kill(workers[1])
                added = nodes.add()
                server.until(lambda: num_answers(added) > 0)
            config = load_config(path)
            asyncio.run(wait_until_quiet(config, provider, LEASES_S))
            told = [session for client in clients for session in client.sessions]
            compared = asyncio.run(compare(config, told, read_calls(calls_log)))
            stop(server)
    assert compared.broken == []
    assert sum((client.failures for client in clients), Counter()).total() > 0  # or nobody has felt the death
    assert compared.expired_attempts > 0  # of calls that the dead replica had begun
    assert sum(len(session.decisions) for session in told) >= NUM_CLIENTS * TURNS_AFTER


def test_an_sqlite_ledger_is_refused_on_several_nodes_and_nothing_is_left_running(
    nodes: Nodes, workers: list[WorkerNode], tmp_path: Path
) -> None:
    fields = settings(tmp_path, random_artefact(trio()), f"http://127.0.0.1:{free_port()}/v1")
    path = write_settings(tmp_path, fields)
    refused = nodes.seqroute("serve", "--config", path, "--port", str(free_port()))
    assert refused.code == 2
    assert "is a file, and each of the 2 nodes that may hold replicas would have its own" in refused.stderr
    with redis(tmp_path) as ledger:
        write_settings(tmp_path, {**fields, "ledger": ledger})
        port = free_port()
        with nodes.command("seqroute_ray.cli", "serve", "--config", path, "--port", str(port)) as server:
            server.until(lambda: is_ready(f"http://127.0.0.1:{port}"))
            stop(server)
    wait_until(lambda: not any(node.runs(REPLICA) for node in workers))
