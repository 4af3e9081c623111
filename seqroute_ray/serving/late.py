"""Writes that the ledger did not take are repeated behind the client's back: an attempt ends, if late.

Until then the reservation holds the money; if this replica dies, the reaper charges it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from seqroute_ray.core.errors import LedgerError, LedgerUnavailable
from seqroute_ray.serving.metrics import Metrics

RETRY_S = 1.0

logger = logging.getLogger(__name__)


class LateWrites:
    """What waits for the ledger. `close` waits for it all."""

    def __init__(self, metrics: Metrics, patience_s: float) -> None:
        self._metrics, self._patience_s = metrics, patience_s
        self._waiting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._waiting, return_exceptions=True)

    async def write(self, attempt_id: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do it now, or later where the ledger does not answer. It may be done twice: the ledger's writes can."""
        try:
            await work()
        except LedgerUnavailable:
            self.write_later(attempt_id, work)

    def write_later(self, attempt_id: str, work: Callable[[], Awaitable[object]]) -> None:
        waiting = asyncio.create_task(self._repeat(attempt_id, work))
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)

    async def _repeat(self, attempt_id: str, work: Callable[[], Awaitable[object]]) -> None:
        self._metrics.add("ledger_lag", 1)
        deadline_s = time.monotonic() + self._patience_s
        try:
            while time.monotonic() < deadline_s:
                await asyncio.sleep(RETRY_S)
                try:
                    await work()
                    return
                except LedgerUnavailable:
                    continue
            logger.error("write_given_up attempt=%s: the reaper will charge its reservation", attempt_id)
        except LedgerError as error:
            logger.error("write_refused attempt=%s error=%s", attempt_id, type(error).__name__)
        finally:
            self._metrics.add("ledger_lag", -1)
