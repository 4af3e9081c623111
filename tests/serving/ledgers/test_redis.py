import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from seqroute_ray.core.errors import ConfigError, LedgerUnavailable
from seqroute_ray.core.ledger import Account, Claim
from seqroute_ray.serving.ledgers import redis_client
from seqroute_ray.serving.ledgers.factory import open_ledger
from seqroute_ray.serving.ledgers.redis import RedisLedger
from tests.serving.ledgers.redis_server import RedisServer
from tests.serving.ledgers.support import LEASE_S, money, opened, session_of


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"appendonly": "no"}, "`appendonly yes`, or a kill forgets what was spent"),
        ({"maxmemory-policy": "allkeys-lru"}, "`maxmemory-policy noeviction`, or budgets vanish"),
        ({"maxmemory-policy": "volatile-ttl"}, "`maxmemory-policy noeviction`, or budgets vanish"),
        ({"cluster-enabled": "yes"}, "`cluster-enabled no`"),
    ],
)
def test_a_redis_that_may_forget_is_refused(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    server = RedisServer(tmp_path, **settings).start()
    with pytest.raises(ConfigError, match=words):
        asyncio.run(open_ledger(server.url))
    server.stop()


def test_a_redis_that_may_lose_a_second_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path, appendfsync="everysec").start()
    with caplog.at_level(logging.WARNING):
        open_and_ping(server.url)
    assert "set appendfsync always" in caplog.text
    server.stop()


def open_and_ping(url: str, password_env: str | None = None) -> None:
    async def work() -> None:
        ledger = await open_ledger(url, password_env)
        await ledger.ping()
        await ledger.close()

    asyncio.run(work())


def test_a_password_comes_from_the_environment_and_is_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(tmp_path, requirepass="open-sesame")
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    monkeypatch.setenv("WRONG", "secret-that-is-wrong")
    server.start()
    open_and_ping(server.url, "REDIS_PASSWORD")
    open_and_ping(server.url.replace("//", "//:open-sesame@"))
    wrong_url = server.url.replace("//", "//:secret-that-is-wrong@")
    for url, variable in ((server.url, "WRONG"), (wrong_url, None), (server.url, None)):
        with pytest.raises(LedgerUnavailable, match="refuses the password") as refused:
            open_and_ping(url, variable)
        assert "secret-that-is-wrong" not in str(refused.value)
    with pytest.raises(ConfigError, match="UNSET is not set"):
        open_and_ping(server.url, "UNSET")
    server.stop()


@pytest.mark.parametrize("url", ["redis://:secret/x@host:port/0", "redis://host:70000000/0"])
def test_a_bad_url_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="not a Redis URL") as refused:
        open_and_ping(url)
    assert "secret" not in str(refused.value)


async def test_a_redis_that_stays_away_makes_the_ledger_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "PATIENCE_S", 0.3)
    server = RedisServer(tmp_path).start()
    async with session_of(server.url, 100) as ledger:
        server.stop()
        for call in (ledger.ping(), ledger.account("s"), ledger.reserve("s", "a", "m", 1, LEASE_S), ledger.books("s")):
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await call


async def test_a_redis_that_cannot_write_makes_the_ledger_unavailable_but_readable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    async with session_of(server.url, 100) as ledger:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(LedgerUnavailable, match="cannot write"):
                await ledger.reserve("s", "a", "m", 1, LEASE_S)
            assert money(await ledger.account("s")) == (100, 0, 0, 0)
            client.config_set("maxmemory", "0")
        assert money(await ledger.reserve("s", "a", "m", 1, LEASE_S)) == (100, 0, 1, 0)
    server.stop()


async def test_a_call_whose_answer_was_lost_is_done_once(redis_server: RedisServer) -> None:
    """A proxy forwards each call and cuts the connection before the first answer to it."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    async with cutting_proxy(redis_server.port) as cutter, session_of(redis_server.url, 100) as plain:
        ledger = await RedisLedger.connect(f"redis://127.0.0.1:{cutter.port}/0")
        calls: list[Callable[[], Awaitable[Account]]] = [
            lambda: ledger.reserve("s", "a", "m", 60, LEASE_S),
            lambda: ledger.settle("s", "a", 25),
            lambda: ledger.reserve("s", "b", "m", 60, LEASE_S),
            lambda: ledger.release("s", "b"),
            lambda: ledger.correct("s", "a", 30),
            lambda: ledger.raise_budget("s", 200),
        ]
        for call in calls:
            cutter.num_cuts = 1
            await call()
            assert cutter.num_cuts == 0
        cutter.num_cuts = 1
        assert await ledger.claim("s", "k", "hash", LEASE_S) == (Claim.MINE, None)
        assert await plain.claim("s", "k", "hash", LEASE_S) == (Claim.IN_FLIGHT, None)
        kinds = [entry.kind for entry in await plain.entries("s")]
        assert kinds == ["open", "reserve", "settle", "reserve", "release", "correct", "raise"]
        await ledger.close()


@asynccontextmanager
async def cutting_proxy(target: int) -> AsyncIterator["Cutter"]:
    cutter = Cutter(target)
    server = await asyncio.start_server(cutter.forward, "127.0.0.1", 0)
    cutter.port = server.sockets[0].getsockname()[1]
    yield cutter
    server.close()


class Cutter:
    """Forwards bytes to a port; while num_cuts > 0, it swallows an answer and cuts its connection instead."""

    def __init__(self, target: int) -> None:
        self._target, self.num_cuts, self.port = target, 0, 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        asking = asyncio.create_task(self._copy(reader, upstream_writer))
        while answer := await upstream_reader.read(65536):
            if self.num_cuts:
                self.num_cuts -= 1
                break
            writer.write(answer)
        asking.cancel()
        writer.close()
        upstream_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(65536):
            writer.write(asked)
        writer.close()


async def test_scripts_are_loaded_again_when_redis_forgot_them(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as ledger:
        await ledger.open("forgotten scripts", 100)
        with redis.Redis.from_url(redis_server.url) as client:
            client.script_flush()
        assert (await ledger.reserve("forgotten scripts", "f", "m", 10, LEASE_S)).reserved_nusd == 10


async def test_no_key_ever_expires_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    async with session_of(server.url, 100) as ledger:
        await ledger.reserve("s", "a", "m", 10, LEASE_S)
        await ledger.claim("s", "k", "hash", LEASE_S)
    with redis.Redis.from_url(server.url) as client:
        assert {client.ttl(key) for key in client.scan_iter()} == {-1}
        client.set("seqroute:version", 2)
    with pytest.raises(ConfigError, match="version 2, this release knows up to 1"):
        await open_ledger(server.url)
    server.stop()
