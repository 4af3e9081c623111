"""A Redis that a ledger may trust: what it must be set to, scripts by their hash, and patience while it restarts."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from seqroute_ray.core.errors import ConfigError, LedgerUnavailable
from seqroute_ray.serving.ledgers.redis_pipeline import RedisPipeline, Word
from seqroute_ray.serving.ledgers.redis_scripts import Script

SCHEMA_VERSION = 1
PREFIX = "seqroute:"
PATIENCE_S = 10.0  # how long calls are repeated while Redis does not answer: a restart takes a few seconds
CALL_TIMEOUT_S = 2.0  # of one try
MAX_CONNECTIONS = 16  # of one process; most commands share two
MIN_DELAY_S, MAX_DELAY_S = 0.01, 0.5

# Keys that all sessions share; see redis_scripts.
_SHARED = frozenset(("leases", "attempt_sessions", "decision_sessions", "sessions", "changed", "change_number")) | {
    "answers_by_age",
    "answer_bytes",
}
_CANNOT_WRITE = ("MISCONF", "OOM", "NOREPLICAS", "command not allowed when used memory")

logger = logging.getLogger(__name__)


class RedisClient:
    """Connections to the Redis at a URL; `check` it before the first use. Messages never show its password."""

    def __init__(self, url: str, password: str | None = None) -> None:
        """Raises ConfigError when the URL is none."""
        options: dict[str, Any] = {} if password is None else {"password": password}
        try:
            pool = aioredis.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=PATIENCE_S,
                socket_timeout=CALL_TIMEOUT_S,
                socket_connect_timeout=CALL_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # `patiently` repeats
                **options,
            )
        except ValueError:
            raise ConfigError("ledger: not a Redis URL; write redis://HOST:PORT/DB") from None  # without its password
        settings = pool.connection_kwargs
        self.place = f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"
        self.redis = aioredis.Redis(connection_pool=pool)
        self._pipeline = RedisPipeline(self.redis)

    async def check(self) -> None:
        """Raises ConfigError on a Redis that may forget what it granted, or that a newer release wrote to."""
        info = await self.patiently(lambda: self.redis.info("memory", "persistence", "cluster"))
        self._refuse_unless(info["maxmemory_policy"] == "noeviction", "maxmemory-policy noeviction", "budgets vanish")
        self._refuse_unless(bool(info["aof_enabled"]), "appendonly yes", "a kill forgets what was spent")
        self._refuse_unless(not info["cluster_enabled"], "cluster-enabled no", "a script's keys are on one node")
        await self._check_version()
        if await self._appendfsync() != "always":
            logger.warning("event=ledger_may_lose_a_second redis=%s remedy='set appendfsync always'", self.place)

    async def run(self, script: Script, session_id: str, *args: Word) -> Any:
        """Its answer. Raises LedgerUnavailable."""
        keys = [self.key(name, session_id) for name in script.keys]

        try:
            return await self.ask("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:  # new to this Redis, or to this run of it
            return await self.ask("EVAL", script.text, len(keys), *keys, *args)

    async def ask(self, *command: Word) -> Any:
        """The answer to one command that is safe to repeat. Raises LedgerUnavailable."""
        return await self.patiently(lambda: self._pipeline.ask(*command))

    @staticmethod
    def key(name: str, session_id: str) -> str:
        """A session's key of this name; one of all sessions for the names that Redis shares between them."""
        return f"{PREFIX}{name}" if name in _SHARED else f"{PREFIX}{{{session_id}}}:{name}"

    async def patiently(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What the work returns; it is repeated while Redis does not answer, so it must be safe to repeat.

        Raises LedgerUnavailable after PATIENCE_S, or at once when Redis cannot write or does not let us in.
        """
        deadline_s, delay_s = time.monotonic() + PATIENCE_S, MIN_DELAY_S
        while True:
            try:
                return await _cancellable(work)
            except AuthenticationError:
                raise LedgerUnavailable(f"Redis at {self.place} refuses the password") from None
            except (ConnectionError, TimeoutError, ReadOnlyError, OSError) as error:
                if time.monotonic() + delay_s > deadline_s:
                    raise LedgerUnavailable(f"Redis at {self.place} does not answer: {type(error).__name__}") from error
            except ResponseError as error:
                if str(error).startswith(_CANNOT_WRITE):
                    raise LedgerUnavailable(f"Redis at {self.place} cannot write: {error}") from error
                raise
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - replicas should not come at once
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    async def close(self) -> None:
        await self._pipeline.close()
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    def _refuse_unless(self, holds: bool, setting: str, why: str) -> None:
        if not holds:
            raise ConfigError(f"ledger: Redis at {self.place} must be set to `{setting}`, or {why}")

    async def _check_version(self) -> None:
        key = f"{PREFIX}version"
        await self.ask("SET", key, SCHEMA_VERSION, "NX")
        version = int(await self.ask("GET", key))
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"ledger: the schema in Redis at {self.place} is version {version}, this release knows up to "
                f"{SCHEMA_VERSION}; use the release that wrote it, or a newer one"
            )

    async def _appendfsync(self) -> str:
        """ "unknown" where the server does not tell its settings."""
        try:
            settings = await self.patiently(lambda: self.redis.config_get("appendfsync"))
        except RedisError:
            return "unknown"
        return str(settings.get("appendfsync", "unknown"))


async def _cancellable(work: Callable[[], Awaitable[Any]]) -> Any:
    """The work's result; cancels the task again where the work swallowed that, as wait_for of Python 3.11 may."""
    task = asyncio.current_task()
    num_before = task.cancelling() if task else 0
    try:
        return await work()
    finally:
        if task and task.cancelling() > num_before:
            raise asyncio.CancelledError
