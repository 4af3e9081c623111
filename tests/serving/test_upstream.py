import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.serving.config import UpstreamConfig, UpstreamTimeouts
from seqroute_ray.serving.sse import encode
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError, UpstreamFault
from seqroute_ray.serving.upstream_errors import MAX_RETRY_AFTER_S, read_retry_after_s
from seqroute_ray.serving.usage import Tally, Usage

from .scripted_provider import RESET, STALL, STREAM_HEAD, Script, Scripted, part, scripted, stream, whole

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


def test_a_whole_answer_comes_with_its_tally() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        answer = await client.start("m", FIELDS, 64, "attempt-1", stream=False)
        assert answer.body == COMPLETION
        usage = Usage(prompt_tokens=9, completion_tokens=4)
        assert answer.tally == Tally(usage=usage, completion_bytes=3, finish_reason="stop", done=True)
        assert [payload async for payload in answer] == []
        await answer.aclose()
        assert provider.bodies == [{**FIELDS, "model": "m", "max_tokens": 64}]
        assert "x-client-request-id: attempt-1\r\n" in provider.heads[0]
        assert "authorization" not in provider.heads[0]

    with_client(act, [whole(COMPLETION)])


def test_what_is_set_here_cannot_come_from_the_request() -> None:
    fields = {**FIELDS, "model": "x", "max_tokens": 9999, "max_completion_tokens": 9999, "stream": True}

    async def act(client: UpstreamClient, provider: Scripted) -> None:
        await client.start("m", fields, 64, "a", stream=False)
        assert provider.bodies == [{**FIELDS, "model": "theirs", "max_completion_tokens": 64}]

    with_client(act, [whole(COMPLETION)], upstream_model="theirs", max_tokens_field="max_completion_tokens")


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret")

    async def act(client: UpstreamClient, provider: Scripted) -> None:
        await client.start("m", FIELDS, 64, "a", stream=False)
        assert "authorization: bearer s3cret\r\n" in provider.heads[0]

    with_client(act, [whole(COMPLETION)], api_key_env="SOME_KEY")


def test_a_stream_gives_its_payloads_as_they_came_and_its_tally() -> None:
    payloads, tally, error = read_once(*stream(ANSWER))
    assert error is None
    assert payloads == CHUNKS  # neither [DONE] nor the usage, which the client did not ask for
    assert tally == FULL
    assert tally.finished


def test_a_stream_always_asks_for_its_usage_and_shows_it_to_who_asked() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        await read(client, {**FIELDS, "stream_options": {"include_usage": False, "other": 1}})
        payloads, _, _ = await read(client, {**FIELDS, "stream_options": {"include_usage": True}})
        assert payloads == [*CHUNKS, USAGE_CHUNK]
        options = [body["stream_options"] for body in provider.bodies]
        assert options == [{"include_usage": True, "other": 1}, {"include_usage": True}]
        assert [body["stream"] for body in provider.bodies] == [True, True]

    with_client(act, stream(ANSWER))


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


def test_connections_are_used_again_after_a_stream_and_after_an_error() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        for _ in range(5):
            await read(client)
        with pytest.raises(UpstreamError):
            await client.start("m", FIELDS, 64, "a", stream=False)
        await read(client)
        assert provider.num_connections == 1

    with_client(act, *[stream(ANSWER)] * 5, [whole({}, 500)], stream(ANSWER))


def test_a_provider_that_keeps_the_connection_open_after_done_does_not_hold_the_answer() -> None:
    started_s = time.monotonic()
    payloads, tally, error = read_once(STREAM_HEAD, part(ANSWER), STALL)
    assert (payloads, tally, error) == (CHUNKS, FULL, None)
    assert time.monotonic() - started_s < 2


# (status, kind, retryable, may be billed)
STATUSES = [
    (301, UpstreamFault.REFUSED, False, False),
    (400, UpstreamFault.REFUSED, False, False),
    (401, UpstreamFault.REFUSED, False, False),
    (408, UpstreamFault.SERVER, True, False),
    (429, UpstreamFault.RATE_LIMIT, True, False),
    (500, UpstreamFault.SERVER, True, False),
    (503, UpstreamFault.SERVER, True, False),
    (504, UpstreamFault.TIMEOUT, False, True),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "kind", "retryable", "may_be_billed"), STATUSES)
def test_a_status_says_what_may_be_tried_and_billed(
    status: int, kind: UpstreamFault, retryable: bool, may_be_billed: bool, streamed: bool
) -> None:
    error = failure_of([whole({"error": {"message": "the reason"}}, status, retry_after="7")], streamed)
    assert (error.status, error.kind, error.retryable, error.may_be_billed) == (status, kind, retryable, may_be_billed)
    assert error.retry_after_s == 7
    assert error.tally == Tally()
    assert (": the reason" in str(error)) == (status != 401)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", {"error": None}, {"error": {"message": 3}}])
def test_an_error_without_a_message_is_still_one(body: Any) -> None:
    assert str(failure_of([whole(body, 500)])) == "upstream 'm' answered HTTP 500"


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_fails_for_every_request_is_the_providers_fault(status: int) -> None:
    assert failure_of([whole({}, status)]).is_providers_fault


def test_a_request_that_is_wrong_is_not_the_providers_fault() -> None:
    assert not failure_of([whole({}, 400)]).is_providers_fault


@pytest.mark.parametrize("streamed", [False, True])
def test_a_closed_port_costs_nothing_and_may_be_tried_again(streamed: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def run() -> UpstreamError:
        async with UpstreamClient([config(f"http://127.0.0.1:{port}/v1")], TIMEOUTS) as client:
            with pytest.raises(UpstreamError) as caught:
                await client.start("m", FIELDS, 64, "a", streamed)
        return caught.value

    error = asyncio.run(run())
    assert (error.kind, error.retryable, error.may_be_billed) == (UpstreamFault.CONNECT, True, False)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_that_accepts_no_connection_is_a_connect_error(streamed: bool) -> None:
    """Its queue is full: connecting waits, and no request is sent."""

    async def run() -> UpstreamError:
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        try:
            limits = replace(TIMEOUTS, connect_s=BRIEF_S)
            async with UpstreamClient([config(f"http://127.0.0.1:{address[1]}/v1")], limits) as client:
                with pytest.raises(UpstreamError) as caught:
                    await client.start("m", FIELDS, 64, "a", streamed)
            return caught.value
        finally:
            for opened in (*fillers, listener):
                opened.close()

    error = asyncio.run(run())
    assert (error.kind, error.retryable, error.may_be_billed) == (UpstreamFault.CONNECT, True, False)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_reset_before_the_answer_may_be_billed(streamed: bool) -> None:
    error = failure_of([RESET], streamed)
    assert (error.kind, error.retryable, error.may_be_billed) == (UpstreamFault.TRUNCATED, False, True)


SEEN = b"".join(map(encode, TEXT))
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


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", UpstreamFault.MALFORMED),
        (b'{"choices": [', UpstreamFault.MALFORMED),
        ({"error": {"message": "worn out", "code": 503}}, UpstreamFault.SERVER),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_of_status_200_that_is_no_answer_may_be_billed(body: Any, kind: UpstreamFault, streamed: bool) -> None:
    error = failure_of([whole(body)], streamed)
    assert (error.kind, error.retryable, error.may_be_billed) == (kind, False, True)


def test_a_whole_answer_to_a_streamed_request_is_refused_with_its_usage() -> None:
    error = failure_of([whole(COMPLETION)], stream=True)
    assert error.kind is UpstreamFault.MALFORMED
    assert error.tally.usage == Usage(prompt_tokens=9, completion_tokens=4)


def test_a_body_that_is_cut_off_may_be_billed() -> None:
    error = failure_of([whole(COMPLETION)[:-5], RESET])
    assert (error.kind, error.may_be_billed) == (UpstreamFault.TRUNCATED, True)


# (what plays before the silence, changed timeouts, setting that is named)
SLOW = [
    ([STALL], {"first_byte_s": 0.1, "connect_s": 0.3}, "upstream_first_byte_timeout_s"),
    (
        [STREAM_HEAD, part(b": ping\n\n"), STALL],
        {"first_byte_s": 0.1, "connect_s": 0.3},
        "upstream_first_byte_timeout_s",
    ),
    ([STREAM_HEAD, part(SEEN), STALL], {"silence_s": BRIEF_S}, "upstream_silence_timeout_s"),
    ([STREAM_HEAD, part(SEEN), STALL], {"total_s": 3 * BRIEF_S}, "upstream_timeout_s"),
    ([STALL], {"total_s": 3 * BRIEF_S}, "upstream_timeout_s"),
]


@pytest.mark.parametrize(("script", "changes", "setting"), SLOW)
def test_a_stream_that_is_slow_is_broken_off_and_the_setting_named(
    script: list[bytes | str], changes: dict[str, float], setting: str
) -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> Seen:
        seen = await read(client)
        await asyncio.wait_for(provider.hung_up.wait(), 2)
        return seen

    payloads, tally, error = with_client(act, script, timeouts=replace(TIMEOUTS, **changes))
    assert error is not None
    assert (error.kind, error.retryable, error.may_be_billed) == (UpstreamFault.TIMEOUT, False, True)
    assert str(error).endswith(f"took longer than {setting} allows")
    assert payloads == (TEXT if part(SEEN) in script else [])
    assert tally.completion_bytes == (NUM_TEXT_BYTES if payloads else 0)


def test_a_whole_answer_has_the_whole_time_and_no_more() -> None:
    limits = replace(TIMEOUTS, first_byte_s=0.01, silence_s=0.01, total_s=3 * BRIEF_S)
    error = failure_of([STALL], timeouts=limits)
    assert (error.kind, error.may_be_billed) == (UpstreamFault.TIMEOUT, True)
    assert "upstream_timeout_s" in str(error)


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


@pytest.mark.parametrize("script", [[STALL], [STREAM_HEAD, STALL]])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_cancelled_start_hangs_up_at_once(script: list[bytes | str], streamed: bool) -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        starting = asyncio.create_task(client.start("m", FIELDS, 64, "a", streamed))
        while not provider.bodies:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(provider.hung_up.wait(), 1)

    with_client(act, script)


NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
RETRY_AFTER = [
    ({}, None),
    ({"retry-after": "3"}, 3),
    ({"retry-after": "0.25"}, 0.25),
    ({"retry-after": "-5"}, 0),
    ({"retry-after": "1e9"}, MAX_RETRY_AFTER_S),
    ({"retry-after": "inf"}, MAX_RETRY_AFTER_S),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after-ms": "500", "retry-after": "3"}, 0.5),
    ({"retry-after-ms": "x", "retry-after": "3"}, 3),
    ({"retry-after": format_datetime(NOW + timedelta(seconds=20), usegmt=True)}, 20),
    ({"retry-after": format_datetime(NOW - timedelta(seconds=20), usegmt=True)}, 0),
]


@pytest.mark.parametrize(("headers", "wanted"), RETRY_AFTER)
def test_retry_after_is_seconds_or_a_date_and_bounded(headers: dict[str, str], wanted: float | None) -> None:
    assert read_retry_after_s(headers, NOW) == wanted
