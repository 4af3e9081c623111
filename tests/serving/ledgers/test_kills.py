"""Kills of a writer and of Redis: whatever was acknowledged is there, and the books are right."""

import asyncio
import subprocess
import sys
from pathlib import Path

import redis

from seqroute_ray.core.ledger import AttemptState
from seqroute_ray.serving.ledgers.audit import problems_of
from tests.serving.ledgers.redis_server import RedisServer
from tests.serving.ledgers.support import FAR_S, LEASE_S, opened, session_of

NUM_ACKNOWLEDGED = 300


def acknowledged_until_killed(place: str) -> dict[str, str]:
    """The last thing that a process was told of each attempt, before it was killed at its work."""
    command = [sys.executable, "-m", "tests.serving.ledgers.kill_writer", place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(NUM_ACKNOWLEDGED)]
        process.kill()
        lines += process.stdout.readlines()
    return {attempt_id: what for what, attempt_id in (line.split() for line in lines)}


async def test_what_a_killed_process_was_told_is_there(place: str) -> None:
    async with session_of(place, 10**9):
        told = await asyncio.to_thread(acknowledged_until_killed, place)
    async with opened(place) as ledger:
        books = await ledger.books("s")
        found = {attempt.attempt_id: attempt.state.value for attempt in books.attempts}
        later = {"reserved": ("reserved", "settled"), "settled": ("settled",)}  # the kill came before the news
        assert all(found[attempt_id] in later[what] for attempt_id, what in told.items())
        assert problems_of(books) == []
        num_open = sum(state == "reserved" for state in found.values())
        assert len(await ledger.expire(FAR_S)) == num_open
        assert (await ledger.account("s")).reserved_nusd == 0


async def test_what_a_killed_redis_had_acknowledged_is_there_and_calls_ride_out_its_restart(tmp_path: Path) -> None:
    server = RedisServer(tmp_path).start()
    try:
        async with session_of(server.url, 10**9) as ledger:
            settled: set[str] = set()

            async def task(number: int) -> None:
                for turn in range(100):
                    await ledger.reserve("s", f"{number}-{turn}", "m", 10, LEASE_S)
                    await ledger.settle("s", f"{number}-{turn}", 7)
                    settled.add(f"{number}-{turn}")

            tasks = asyncio.gather(*map(task, range(8)))
            while len(settled) < NUM_ACKNOWLEDGED:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.sleep(0.1)  # its last answers are still on their way
            before = set(settled)
            await asyncio.sleep(0.2)
            assert settled == before  # nothing is granted while it is away
            await asyncio.to_thread(server.start)
            await tasks
            books = await ledger.books("s")
    finally:
        server.stop()
    assert before < settled
    assert {a.attempt_id for a in books.attempts if a.state is AttemptState.SETTLED} == settled
    assert problems_of(books) == []
    assert books.account.spent_nusd == 800 * 7
    assert len(books.entries) == 1 + 2 * 800  # nothing was booked twice


def test_a_redis_without_its_file_forgets(tmp_path: Path) -> None:
    """Why such a Redis is refused, and why the test above can fail."""
    server = RedisServer(tmp_path, appendonly="no").start()
    with redis.Redis.from_url(server.url) as client:
        client.set("granted", 1)
        server.kill()
        server.start()
        assert client.get("granted") is None
    server.stop()
