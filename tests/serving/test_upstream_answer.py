import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.serving.sse import encode
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError, UpstreamFault

from .scripted_provider import RESET, STALL, STREAM_HEAD, Script, Scripted, part, stream
from .upstream_support import (
    ANSWER,
    BRIEF_S,
    CHUNKS,
    DONE,
    FIELDS,
    FULL,
    NUM_TEXT_BYTES,
    SEEN,
    TEXT,
    TIMEOUTS,
    failure_of,
    read,
    read_once,
    with_client,
)


def test_a_stream_gives_its_payloads_as_they_came_and_its_tally() -> None:
    payloads, tally, error = read_once(*stream(ANSWER))
    assert error is None
    assert payloads == CHUNKS  # neither [DONE] nor the usage, which the client did not ask for
    assert tally == FULL
    assert tally.finished


def test_a_split_at_every_byte_gives_the_same_text_and_tally() -> None:
    async def act(client: UpstreamClient, _: Scripted) -> None:
        for at in range(len(ANSWER)):
            assert await read(client) == (CHUNKS, FULL, None), at

    with_client(act, *(stream(ANSWER, [at]) for at in range(1, len(ANSWER) + 1)))


def test_every_byte_alone_gives_the_same_text_and_tally() -> None:
    assert read_once(*stream(ANSWER, [1] * len(ANSWER))) == (CHUNKS, FULL, None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 80)), st.sampled_from([b"\n", b"\r", b"\r\n"]))
def test_line_ends_and_sizes_of_parts_make_no_difference(sizes: list[int], line_end: bytes) -> None:
    raw = ANSWER.replace(b"\n", line_end)
    assert read_once(*stream(raw, sizes)) == (CHUNKS, FULL, None)


def test_a_provider_that_keeps_the_connection_open_after_done_does_not_hold_the_answer() -> None:
    started_s = time.monotonic()
    payloads, tally, error = read_once(STREAM_HEAD, part(ANSWER), STALL)
    assert (payloads, tally, error) == (CHUNKS, FULL, None)
    assert time.monotonic() - started_s < 2


BROKEN_STREAMS: list[tuple[Script, UpstreamFault]] = [
    ([STREAM_HEAD, part(SEEN), RESET], UpstreamFault.TRUNCATED),
    (stream(SEEN), UpstreamFault.TRUNCATED),
    (stream(SEEN + b"data: {"), UpstreamFault.TRUNCATED),
    (stream(SEEN + encode(b'{"choices": [{"delta"')), UpstreamFault.MALFORMED),
    (stream(SEEN + encode(b"[1]") + encode(CHUNKS[1])), UpstreamFault.MALFORMED),
    (stream(SEEN + b"data: " + b"x" * 2**21), UpstreamFault.MALFORMED),
    (stream(SEEN + encode(b'{"error": {"message": "worn out", "code": 502}}')), UpstreamFault.SERVER),
    (stream(SEEN + encode(b'{"error": "worn out"}')), UpstreamFault.SERVER),
    (stream(SEEN + encode(b'{"message": "worn out"}', b"error")), UpstreamFault.SERVER),
    (stream(SEEN + encode(b'{"error": {"code": 429}}')), UpstreamFault.RATE_LIMIT),
]


@pytest.mark.parametrize(("script", "kind"), BROKEN_STREAMS)
def test_a_stream_that_breaks_gives_what_came_and_then_fails(script: Script, kind: UpstreamFault) -> None:
    payloads, tally, error = read_once(*script)
    assert error is not None
    assert payloads == TEXT
    assert (error.kind, error.retryable, error.may_be_billed) == (kind, False, True)
    assert tally.usage is None
    assert tally.completion_bytes == NUM_TEXT_BYTES
    assert not tally.finished


@pytest.mark.parametrize("first", [b"", b'{"error": {"message": "worn out"}}', b"nonsense", b": ping\n\n"])
def test_what_fails_before_the_first_payload_fails_at_the_start(first: bytes) -> None:
    error = failure_of(stream(encode(first) if first else b": ping\n\n"), stream=True)
    assert error.may_be_billed
    assert not error.retryable


def test_a_usage_that_came_before_the_break_is_known() -> None:
    _, tally, error = read_once(*stream(ANSWER.removesuffix(DONE)))
    assert error is not None
    assert error.kind is UpstreamFault.TRUNCATED
    assert tally == replace(FULL, done=False)


def test_a_stream_without_a_finish_reason_ends_but_is_not_finished() -> None:
    payloads, tally, error = read_once(*stream(SEEN + DONE))
    assert (payloads, error) == (TEXT, None)
    assert tally.done
    assert not tally.finished


def test_done_without_its_empty_line_is_the_end() -> None:
    assert read_once(*stream(ANSWER.removesuffix(b"\n"))) == (CHUNKS, FULL, None)


def test_a_reader_that_is_slow_is_not_the_providers_silence() -> None:
    async def act(client: UpstreamClient, _: Scripted) -> list[bytes]:
        answer = await client.start("m", FIELDS, 64, "a", stream=True)
        payloads = []
        async for payload in answer:
            payloads.append(payload)
            await asyncio.sleep(1.3 * BRIEF_S)
        return payloads

    script = stream(ANSWER, [len(encode(payload)) for payload in CHUNKS])
    assert with_client(act, script, timeouts=replace(TIMEOUTS, silence_s=BRIEF_S)) == CHUNKS


def test_a_stream_that_breaks_hangs_up_without_being_closed() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        answer = await client.start("m", FIELDS, 64, "a", stream=True)
        with pytest.raises(UpstreamError):
            [payload async for payload in answer]
        await asyncio.wait_for(provider.hung_up.wait(), 1)

    with_client(act, [STREAM_HEAD, part(SEEN + encode(b"nonsense")), STALL])


def test_closing_a_stream_hangs_up_at_once() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        answer = await client.start("m", FIELDS, 64, "a", stream=True)
        assert await anext(answer) == TEXT[0]
        await answer.aclose()
        await asyncio.wait_for(provider.hung_up.wait(), 1)
        await answer.aclose()
        assert [payload async for payload in answer] == []
        assert answer.tally.completion_bytes == NUM_TEXT_BYTES  # what came, also what nobody read

    with_client(act, [STREAM_HEAD, part(SEEN), STALL])


def test_closing_a_stream_ends_the_task_that_waits_for_it() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        answer = await client.start("m", FIELDS, 64, "a", stream=True)

        async def consume() -> list[bytes]:
            return [payload async for payload in answer]

        reading = asyncio.create_task(consume())
        await asyncio.sleep(0.05)
        await answer.aclose()
        assert await asyncio.wait_for(reading, 1) == TEXT
        await asyncio.wait_for(provider.hung_up.wait(), 1)

    with_client(act, [STREAM_HEAD, part(SEEN), STALL])
