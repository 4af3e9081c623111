"""The client of OpenAI-compatible providers: one aiohttp session for all of them. Logs neither prompts nor keys."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import aiohttp
from pydantic_core import to_json
from yarl import URL

from seqroute_ray.serving.config import UpstreamConfig, UpstreamTimeouts
from seqroute_ray.serving.upstream_answer import UpstreamAnswer
from seqroute_ray.serving.upstream_errors import (
    UpstreamError,
    UpstreamFault,
    from_answer,
    from_exception,
    from_status,
    malformed,
)
from seqroute_ray.serving.usage import parse_object

__all__ = ["UpstreamAnswer", "UpstreamClient", "UpstreamError", "UpstreamFault"]

# A provider keeps it beside its own id of the call: its bill can be reconciled with our ledger, attempt by attempt.
ATTEMPT_HEADER = "x-client-request-id"
EVENT_STREAM = "text/event-stream"
# Of a request; whatever it says of them, what was reserved holds.
SET_HERE = frozenset({"model", "max_tokens", "max_completion_tokens", "stream", "stream_options"})


class UpstreamClient:
    """Chat completions of all upstreams; open it with `async with`."""

    def __init__(self, upstreams: Iterable[UpstreamConfig], timeouts: UpstreamTimeouts) -> None:
        self._upstreams = {upstream.model: upstream for upstream in upstreams}
        self._urls = {name: URL(f"{upstream.base_url}/chat/completions") for name, upstream in self._upstreams.items()}
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "UpstreamClient":
        limits = self._timeouts
        # `connect` covers the name, TCP and TLS. Half of the whole: a call that cannot connect is told from a slow one.
        timeout = aiohttp.ClientTimeout(total=limits.total_s, connect=min(limits.connect_s, limits.total_s / 2))
        # The ledger bounds the calls in flight, not the connection pool: waiting in a pool looks like a slow provider.
        connector, jar = aiohttp.TCPConnector(limit=0), aiohttp.DummyCookieJar()  # cookies are no business of ours
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, cookie_jar=jar)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def start(
        self, model: str, fields: Mapping[str, Any], max_tokens: int, attempt_id: str, stream: bool
    ) -> UpstreamAnswer:
        """The answer when it is whole, or a stream once its first payload is here. Raises UpstreamError.

        fields: the request; model, token limit and streaming are set here. A stream always asks for its usage.
        """
        upstream = self._upstreams[model]
        body = {name: value for name, value in fields.items() if name not in SET_HERE}
        body |= {"model": upstream.sent_model, upstream.max_tokens_field: max_tokens}
        headers = _headers(upstream, attempt_id, stream)
        answer = UpstreamAnswer(model)
        if not stream:
            return await self._whole(answer, upstream, body, headers)
        options = fields.get("stream_options") or {}
        body |= {"stream": True, "stream_options": {**options, "include_usage": True}}
        return await self._streamed(answer, upstream, body, headers, bool(options.get("include_usage")))

    async def _whole(
        self, answer: UpstreamAnswer, upstream: UpstreamConfig, body: dict[str, Any], headers: dict[str, str]
    ) -> UpstreamAnswer:
        try:
            async with await self._post(upstream, body, headers) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise from_exception(upstream.model, error, answer.tally, "upstream_timeout_s") from error
        parsed = parse_object(raw)
        if parsed is None:
            raise malformed(upstream.model, "a body that is not a JSON object", answer.tally)
        answer.body = parsed
        answer.tally.add(parsed, "message")
        answer.tally.done = True
        if parsed.get("error"):
            raise from_answer(upstream.model, parsed, answer.tally)
        return answer

    async def _streamed(
        self,
        answer: UpstreamAnswer,
        upstream: UpstreamConfig,
        body: dict[str, Any],
        headers: dict[str, str],
        shows_usage: bool,
    ) -> UpstreamAnswer:
        clock = asyncio.timeout(self._timeouts.connect_s + self._timeouts.first_byte_s)
        try:
            async with clock:
                response = await self._post(upstream, body, headers)
                try:
                    await _check_stream(upstream.model, response, answer)
                    await answer.begin(response, self._timeouts.silence_s, shows_usage)
                except BaseException:  # raised again: whatever went wrong, the connection ends
                    response.close()
                    raise
        except (aiohttp.ClientError, TimeoutError) as error:
            limit = "upstream_first_byte_timeout_s" if clock.expired() else "upstream_timeout_s"
            raise from_exception(upstream.model, error, answer.tally, limit) from error
        return answer

    async def _post(
        self, upstream: UpstreamConfig, body: dict[str, Any], headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """The response when its status is 2xx. Raises UpstreamError, aiohttp.ClientError, TimeoutError."""
        if self._session is None:
            raise RuntimeError("UpstreamClient is used outside `async with`")
        url = self._urls[upstream.model]
        response = await self._session.post(url, data=to_json(body), headers=headers, allow_redirects=False)
        if 200 <= response.status < 300:
            return response
        raw = b""
        async with response:
            with suppress(aiohttp.ClientError, TimeoutError):  # the status says enough
                raw = await response.read()
        raise from_status(upstream.model, response.status, response.headers, raw)


async def _check_stream(model: str, response: aiohttp.ClientResponse, answer: UpstreamAnswer) -> None:
    """Raises UpstreamError when the body is no event stream, such as an error with status 200."""
    if response.content_type == EVENT_STREAM:
        return
    parsed = parse_object(await response.read()) or {}
    answer.tally.add(parsed, "message")
    if parsed.get("error"):
        raise from_answer(model, parsed, answer.tally)
    raise malformed(model, f"{response.content_type} where a stream was asked for", answer.tally)


def _headers(upstream: UpstreamConfig, attempt_id: str, stream: bool) -> dict[str, str]:
    headers = {ATTEMPT_HEADER: attempt_id, "content-type": "application/json"}
    if stream:
        headers["accept-encoding"] = "identity"  # a compressor holds chunks back
    if upstream.api_key_env:
        headers["authorization"] = f"Bearer {os.environ[upstream.api_key_env]}"
    return headers
