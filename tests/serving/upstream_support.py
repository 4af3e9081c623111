"""What the tests of the upstream client share: an answer, a client of a scripted provider, and reading a stream."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from seqroute_ray.serving.config import UpstreamConfig, UpstreamTimeouts
from seqroute_ray.serving.sse import encode
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError
from seqroute_ray.serving.usage import Tally, Usage

from .scripted_provider import Script, Scripted, scripted

FIELDS = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
TIMEOUTS = UpstreamTimeouts(connect_s=2, first_byte_s=5, silence_s=5, total_s=10)
BRIEF_S = 0.15  # a timeout that a test waits for


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": choices}).encode()


CALL = {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
TEXT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Grü"}),
    chunk({"content": 'ße "\n'}),
    chunk(CALL),
]
CHUNKS = [*TEXT, chunk({}, "stop")]
NUM_TEXT_BYTES = len('Grüße "\n'.encode()) + len("f{}")
USAGE_CHUNK = json.dumps({"id": "c", "choices": [], "usage": USAGE}).encode()
SEEN = b"".join(map(encode, TEXT))
DONE = encode(b"[DONE]")
ANSWER = b": hello\n\n" + b"".join(map(encode, [*CHUNKS, USAGE_CHUNK])) + DONE
FULL = Tally(
    usage=Usage(prompt_tokens=9, completion_tokens=4),
    completion_bytes=NUM_TEXT_BYTES,
    finish_reason="stop",
    done=True,
)
COMPLETION = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hey"}, "finish_reason": "stop"}],
    "usage": USAGE,
}

Seen = tuple[list[bytes], Tally, UpstreamError | None]


def config(base_url: str, **fields: Any) -> UpstreamConfig:
    return UpstreamConfig(model="m", base_url=base_url, usd_per_m_input=1, usd_per_m_output=2, **fields)


def with_client(
    act: Callable[[UpstreamClient, Scripted], Awaitable[Any]],
    *scripts: Script,
    timeouts: UpstreamTimeouts = TIMEOUTS,
    **fields: Any,
) -> Any:
    """What `act` returns, with a client of a provider that plays the scripts."""

    async def run() -> Any:
        async with (
            scripted(*scripts) as provider,
            UpstreamClient([config(provider.base_url, **fields)], timeouts) as client,
        ):
            return await act(client, provider)

    return asyncio.run(run())


async def read(client: UpstreamClient, fields: dict[str, Any] = FIELDS) -> Seen:
    """Payloads, tally and error of a stream."""
    payloads: list[bytes] = []
    try:
        answer = await client.start("m", fields, 64, "attempt-1", stream=True)
        try:
            async for payload in answer:
                payloads.append(payload)
        finally:
            await answer.aclose()
    except UpstreamError as error:
        return payloads, error.tally, error
    return payloads, answer.tally, None


def read_once(*script: bytes | str, timeouts: UpstreamTimeouts = TIMEOUTS) -> Seen:
    seen: Seen = with_client(lambda client, _: read(client), script, timeouts=timeouts)
    return seen


def failure_of(script: Script, stream: bool = False, timeouts: UpstreamTimeouts = TIMEOUTS) -> UpstreamError:
    async def act(client: UpstreamClient, _: Scripted) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await client.start("m", FIELDS, 64, "attempt-1", stream)
        return caught.value

    error: UpstreamError = with_client(act, script, timeouts=timeouts)
    return error
