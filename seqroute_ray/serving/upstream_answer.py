"""One provider's answer: a whole body, or the payloads of a stream, with a tally of what was seen."""

import asyncio
from collections import deque
from typing import Any

import aiohttp

from seqroute_ray.serving.sse import Event, SseError, SseParser
from seqroute_ray.serving.upstream_errors import UpstreamError, from_answer, from_exception, malformed, truncated
from seqroute_ray.serving.usage import Tally, parse_object

DONE = b"[DONE]"
# After [DONE], for the end of the response: a connection that ends cleanly is used again. It mostly comes with [DONE].
DRAIN_TIMEOUT_S = 0.1


class UpstreamAnswer:
    """What `UpstreamClient.start` gives. Close it with `aclose` in any case; read a stream with `async for`.

    Payloads are the `data` of the events as they came, without [DONE]. When the stream fails, the payloads that came
    before are given first, then UpstreamError is raised.
    """

    def __init__(self, model: str, body: dict[str, Any] | None = None) -> None:
        self.tally = Tally()
        self.body = body or {}  # of an answer that is not streamed
        self._model = model
        self._response: aiohttp.ClientResponse | None = None
        self._parser = SseParser()
        self._ready: deque[bytes] = deque()
        self._failure: UpstreamError | None = None
        self._silence_s: float | None = None
        self._shows_usage = False

    async def begin(self, response: aiohttp.ClientResponse, silence_s: float, shows_usage: bool) -> None:
        """Read until the first payload, so that what fails before it fails before anything was passed on.

        shows_usage: give the usage chunk to the reader, who asked for it. Raises UpstreamError, aiohttp.ClientError,
        TimeoutError.
        """
        self._response, self._shows_usage = response, shows_usage
        while not self._ready and not self.tally.done:
            if self._failure:
                raise self._failure
            self._take(await response.content.readany())
        self._silence_s = silence_s

    def __aiter__(self) -> "UpstreamAnswer":
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._failure:
                raise self._failure
            if self._response is None:
                raise StopAsyncIteration
            if self.tally.done:
                await self._drain(self._response)
            else:
                await self._receive(self._response)
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Break the connection off at once, unless the answer came to its end; may be called twice."""
        response, self._response = self._response, None
        self._ready.clear()
        if response is not None:
            response.close()

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        clock = asyncio.timeout(self._silence_s)
        try:
            async with clock:
                received = await response.content.readany()
        except (aiohttp.ClientError, TimeoutError) as error:
            if self._response is not None:  # else aclose, called beside us, broke it off
                limit = "upstream_silence_timeout_s" if clock.expired() else "upstream_timeout_s"
                self._fail(from_exception(self._model, error, self.tally, limit))
            return
        self._take(received)

    async def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Give the connection back for the next call, or close it when the provider keeps it open."""
        self._response = None
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while not response.content.at_eof():
                    await response.content.readany()
        except (aiohttp.ClientError, TimeoutError):
            response.close()
        finally:
            response.release()

    def _take(self, received: bytes) -> None:
        """Count the events in these bytes and make them ready; no bytes: the stream has ended."""
        try:
            for event in self._parser.feed(received):
                self._event(event)
                if self.tally.done or self._failure:
                    return
            if not received:
                self.tally.done = any(event.data == DONE for event in self._parser.end())
        except SseError as error:
            self._fail(malformed(self._model, f"a broken stream: {error}", self.tally))
            return
        if not received and not self.tally.done:
            self._fail(truncated(self._model, "its stream ended without [DONE]", self.tally))

    def _event(self, event: Event) -> None:
        if event.data == DONE:
            self.tally.done = True
        elif not event.name and self.tally.add_plain(event.data):
            self._ready.append(event.data)
        else:
            self._parsed_event(event)

    def _parsed_event(self, event: Event) -> None:
        chunk = parse_object(event.data)
        if chunk is None:
            self._fail(malformed(self._model, "a chunk that is not a JSON object", self.tally))
            return
        self.tally.add(chunk, "delta")
        if chunk.get("error") or event.name == b"error":
            self._fail(from_answer(self._model, chunk, self.tally))
            return
        only_usage = chunk.get("usage") and not chunk.get("choices")
        if self._shows_usage or not only_usage:
            self._ready.append(event.data)

    def _fail(self, error: UpstreamError) -> None:
        """Raised once the payloads that came before it are read. The connection is of no more use."""
        self._failure = error
        response, self._response = self._response, None
        if response is not None:
            response.close()
