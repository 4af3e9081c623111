"""A ledger that does not answer: nothing is granted, and what was answered is charged late. A locked SQLite file."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.serving.ledgers import group_commit, redis_client

from .ledgers.redis_server import RedisServer
from .scripted_provider import Step, Steps, whole
from .service_support import account_of, answer, answered, api_over, ask_for, refused, service_over, streamed


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "BUSY_TIMEOUT_S", 0.1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process has the ledger's file: it can be read, not written."""
    other = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_nothing_is_granted_while_the_ledger_does_not_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            assert (await api.chat()).status == 200
            with locked(tmp_path):
                known = await api.chat()
                new = await api.chat(headers={"x_session_id": "new"})
                keyed = await api.chat(headers={"idempotency_key": "k"})
            after = await api.chat(headers={"idempotency_key": "k"})
            session = await api.session()
        for reply in (known, new, keyed):
            assert (reply.status, reply.body["error"]["code"]) == (503, "ledger_unavailable")
            assert (reply.headers["retry-after"], reply.headers["x-should-retry"]) == ("2", "true")
        assert after.status == 200
        assert len(api.provider.bodies) == 2
        assert (session["num_turns"], session["reserved_usd"]) == (2, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_booked_reaches_its_client_and_is_booked_later(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> tuple[Any, Any, Any, Any]:
        gate = asyncio.Event()
        script: list[Step] = [gate, *(streamed("yes") if stream else answered())]
        async with api_over(tmp_path, script) as api:
            asking = asyncio.create_task(api.chat(stream=stream))
            await api.provider.asked()
            with locked(tmp_path):
                gate.set()
                reply = await asking
                during, metrics = await api.session(), await api.metrics()
            return reply, during, metrics, await api.settled()

    reply, during, metrics, after = asyncio.run(scenario())
    assert reply.status == 200
    assert (during["spent_usd"], during["num_turns"]) == (0, 0)
    assert during["reserved_usd"] > 0  # nobody else can have it meanwhile
    assert metrics["seqroute_ledger_lag"] == 1
    assert (after["num_turns"], after["reserved_usd"]) == (1, 0)
    assert 0 < after["spent_usd"] < during["reserved_usd"]


@pytest.mark.parametrize(("script", "charged"), [(refused(400), False), ([whole(b"<html>")], True)])
def test_a_failed_call_that_cannot_be_booked_ends_later(tmp_path: Path, script: Steps, charged: bool) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *script]) as api:
            asking = asyncio.create_task(api.chat())
            await api.provider.asked()
            with locked(tmp_path):
                gate.set()
                reply = await asking
                during = await api.session()
            after = await api.settled()
        assert (reply.status, reply.body["error"]["charged"]) == (502, charged)
        assert after["spent_usd"] == (during["reserved_usd"] if charged else 0)
        assert during["reserved_usd"] > 0
        assert after["num_turns"] == 0

    asyncio.run(scenario())


def test_a_server_that_stops_books_first_what_is_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with service_over(tmp_path, [gate, *answered()]) as (service, provider):
            turn = asyncio.create_task(answer(service, ask_for()))
            await provider.asked()
            lock = locked(tmp_path)
            lock.__enter__()
            gate.set()
            await turn
            assert (await account_of(service)).spent_nusd == 0
            asyncio.get_running_loop().call_later(0.3, lambda: lock.__exit__(None, None, None))
        async with service_over(tmp_path, answered()) as (service, _):
            account = await account_of(service)
            record = await service.decision("dec_1", "local")
        assert (account.num_turns, account.reserved_nusd) == (1, 0)
        assert account.spent_nusd == record["cost_nusd"] > 0

    asyncio.run(scenario())


def test_a_redis_that_was_killed_is_a_503_until_it_is_back_with_all_its_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "PATIENCE_S", 0.2)
    redis = RedisServer(tmp_path).start()

    async def scenario() -> None:
        async with api_over(tmp_path, answered(), ledger=redis.url) as api:
            first, ready = await api.chat(), await api.call("GET", "/readyz")
            redis.kill()
            refused, busy = await api.chat(), await api.call("GET", "/readyz")
            redis.start()
            again = await api.chat()
            session = await api.session()
        assert (first.status, again.status) == (200, 200)
        assert (ready.status, ready.body) == (200, {"ready": True, "left_alone": []})
        for reply in (refused, busy):
            assert (reply.status, reply.body["error"]["code"]) == (503, "ledger_unavailable")
        assert (session["num_turns"], session["reserved_usd"]) == (2, 0)
        assert len(api.provider.bodies) == 2

    try:
        asyncio.run(scenario())
    finally:
        redis.stop()
