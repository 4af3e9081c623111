"""Commands to Redis that come while others are under way share the next round trip, and Redis' one sync of its file."""

import asyncio
from typing import Any, NamedTuple

import redis.asyncio as aioredis

Word = str | bytes | int | float
MAX_UNDER_WAY = 2  # round trips: one is on its way while the other waits for the disk


class _Asked(NamedTuple):
    command: list[bytes]
    answer: asyncio.Future[Any]


class RedisPipeline:
    """Sends commands from one event loop. A caller that is cancelled stops nobody's round trip, nor its own command."""

    def __init__(self, redis: aioredis.Redis) -> None:
        self._redis = redis
        self._waiting: list[_Asked] = []
        self._under_way = set[asyncio.Task[None]]()

    async def ask(self, *command: Word) -> Any:
        """The answer to a command. Raises RedisError or OSError."""
        loop = asyncio.get_running_loop()
        asked = _Asked([_bytes(word) for word in command], loop.create_future())
        self._waiting.append(asked)
        if len(self._under_way) < MAX_UNDER_WAY:
            task = loop.create_task(self._send_all())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return await asked.answer

    async def close(self) -> None:
        """Return when no round trip is under way."""
        await asyncio.gather(*self._under_way)

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            for asked, answer in zip(batch, await self._send(batch), strict=True):
                if asked.answer.done():  # cancelled
                    continue
                if isinstance(answer, Exception):
                    asked.answer.set_exception(answer)
                else:
                    asked.answer.set_result(answer)

    async def _send(self, batch: list[_Asked]) -> list[Any]:
        """An answer or an error for each."""
        pipeline = self._redis.pipeline(transaction=False)
        for asked in batch:
            pipeline.execute_command(*asked.command)
        try:
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # whatever it is, nobody may wait for ever
            return [error] * len(batch)
        return answers


def _bytes(word: Word) -> bytes:
    """As Redis reads it. Here, so that a word that cannot be written is its caller's error alone."""
    if isinstance(word, bytes):
        return word
    return (word if isinstance(word, str) else repr(word)).encode()
