"""A streamed answer on its way to the client: relayed chunk by chunk, charged at its end, whatever the end is.

whole       the provider finished: charged by its usage
broken off  by the provider: an error event to the client; what was seen is charged, and what may be unseen: see
            unseen_stream_tokens of the settings
dropped     by the client: the provider's connection is closed and the same is charged. With an idempotency key the
            answer is read to its end and kept: the client will ask for it again, and pays once.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from seqroute_ray.core.ledger import StoredAnswer
from seqroute_ray.serving.attempts import Started
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.settling import Settling
from seqroute_ray.serving.turn import UNREADABLE, Renderer
from seqroute_ray.serving.upstream import UpstreamError
from seqroute_ray.serving.upstream_errors import malformed

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8"}

logger = logging.getLogger(__name__)


class Stream:
    """One relay: iterate `chunks` once, or `abandon` it."""

    def __init__(
        self,
        started: Started,
        settling: Settling,
        renderer: Renderer,
        metrics: Metrics,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        forget: Callable[[], Awaitable[None]],
    ) -> None:
        self.started = started
        self._settling, self._renderer, self._metrics = settling, renderer, metrics
        self._spawn, self._forget = spawn, forget
        self._kept: list[bytes] = []
        self._ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the client gets. May be left at any chunk: the attempt ends all the same."""
        if self.started.ask.idempotency_key is None:
            try:
                async for chunk in self._relay():
                    yield chunk
            finally:
                self._leave()
            return
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._spawn(self._pump(queue))
        while (kept := await queue.get()) is not None:
            yield kept

    async def abandon(self) -> None:
        """End a relay that nobody began to read."""
        if self.started.ask.idempotency_key is None:
            self._leave()
        else:
            await self._pump(asyncio.Queue())

    def _leave(self) -> None:
        """The client has gone, or a bug has: charge what was seen, in a task that nobody cancels."""
        if not self._ended:
            self._ended = True
            logger.info("client_dropped model=%s", self.started.decision.model)
            self._spawn(self._charge_seen())

    async def _pump(self, queue: "asyncio.Queue[bytes | None]") -> None:
        """Read to the end, whether or not somebody listens."""
        try:
            async for chunk in self._relay():
                queue.put_nowait(chunk)
        finally:
            self._leave()
            queue.put_nowait(None)

    async def _relay(self) -> AsyncIterator[bytes]:
        try:
            if begin := self._keep(self._renderer.begin()):
                yield begin
            async for payload in self.started.upstream:
                if chunk := self._keep(self._render(payload)):
                    yield chunk
            last = await self._end()
        except UpstreamError as error:
            last = await self._break_off(error)
        yield last

    def _render(self, payload: bytes) -> bytes:
        try:
            return self._renderer.chunk(payload)
        except UNREADABLE as error:
            upstream, model = self.started.upstream, self.started.decision.model
            raise malformed(model, "a chunk of no chat completion", upstream.tally) from error

    def _keep(self, chunk: bytes) -> bytes:
        if self.started.ask.idempotency_key is not None:
            self._kept.append(chunk)
        return chunk

    async def _end(self) -> bytes:
        """Charge the whole answer; its last bytes."""
        self._ended = True
        tally, key = self.started.upstream.tally, self.started.ask.idempotency_key
        paid = self._settling.paid(self.started, tally)
        last = self._keep(self._renderer.end(paid))
        headers = STREAM_HEADERS | paid.headers()
        answer = None if key is None else (key, StoredAnswer(status=200, headers=headers, body=b"".join(self._kept)))
        await asyncio.shield(self._spawn(self._settling.settle(self.started, tally, paid, answer=answer)))
        return last

    async def _break_off(self, error: UpstreamError) -> bytes:
        """Charge what was seen; what tells the client."""
        self._ended = True
        self._metrics.add("upstream_errors", model=self.started.decision.model, kind=error.kind)
        logger.warning("stream_broken model=%s error=%s", self.started.decision.model, error.kind)
        await asyncio.shield(self._spawn(self._charge_seen()))
        return self._renderer.failure(str(error), f"upstream_{error.kind}")

    async def _charge_seen(self) -> None:
        """Close the provider's connection and charge what has come; the key is free again."""
        await self.started.upstream.aclose()
        tally = self.started.upstream.tally
        await self._settling.settle(self.started, tally, self._settling.paid(self.started, tally))
        await self._forget()
