"""The reaper: a task of every replica that charges orphaned attempts and drops old answers.

Replicas need not agree on who does it: the ledger gives each orphan to one of them.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from seqroute_ray.core.errors import ConfigError, LedgerUnavailable
from seqroute_ray.core.ledger import Ledger
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.purse import is_month

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaperConfig:
    """How often, and what is kept."""

    interval_s: float = 5.0  # between looks at the leases; a lease that ran out is charged at most this much later
    prune_interval_s: float = 60.0  # between looks at the stored answers
    answers_max_age_s: float = 86_400.0  # a client that repeats a call does so within a day
    answers_max_bytes: int = 256 * 2**20  # of all sessions

    def __post_init__(self) -> None:
        for name in ("interval_s", "prune_interval_s", "answers_max_age_s", "answers_max_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")


@asynccontextmanager
async def running_reaper(ledger: Ledger, config: ReaperConfig, metrics: Metrics) -> AsyncIterator[None]:
    """The reaper is at work while the block runs."""
    tasks = [
        asyncio.create_task(_repeat(lambda: _expire(ledger, metrics), config.interval_s)),
        asyncio.create_task(_repeat(lambda: _prune(ledger, config), config.prune_interval_s)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _repeat(work: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """For ever, at intervals that differ by a half: replicas that start together should not all look at once."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.5, 1.0))  # noqa: S311
        try:
            await work()
        except LedgerUnavailable as error:
            logger.warning("event=reaper_waits error=%s", error)


async def _expire(ledger: Ledger, metrics: Metrics) -> None:
    expired = [attempt for attempt in await ledger.expire(time.time()) if not is_month(attempt.session_id)]
    for attempt in expired:
        metrics.add("expired_usd", attempt.cost_nusd / 1e9, model=attempt.model)
    if expired:
        charged_usd = sum(attempt.cost_nusd for attempt in expired) / 1e9
        logger.warning("event=attempts_expired attempts=%d charged_usd=%.9f", len(expired), charged_usd)


async def _prune(ledger: Ledger, config: ReaperConfig) -> None:
    num_dropped = await ledger.prune(
        time.time(), answers_max_age_s=config.answers_max_age_s, answers_max_bytes=config.answers_max_bytes
    )
    if num_dropped:
        logger.info("event=answers_dropped answers=%d", num_dropped)
