import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from seqroute_ray.serving.config import UpstreamConfig
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError, UpstreamFault
from seqroute_ray.serving.usage import Tally, Usage

from .scripted_provider import RESET, STALL, STREAM_HEAD, Scripted, part, scripted, stream, whole
from .upstream_support import (
    ANSWER,
    BRIEF_S,
    CHUNKS,
    COMPLETION,
    FIELDS,
    NUM_TEXT_BYTES,
    SEEN,
    TEXT,
    TIMEOUTS,
    USAGE_CHUNK,
    Seen,
    config,
    failure_of,
    read,
    with_client,
)


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


def test_a_request_goes_out_as_the_json_that_it_was() -> None:
    fields = {**FIELDS, "messages": [{"role": "user", "content": "naïve 東京 \\ \n 1e400"}], "seed": 2**70}

    async def act(client: UpstreamClient, provider: Scripted) -> None:
        await client.start("m", fields, 64, "a", stream=False)
        assert provider.bodies == [{**fields, "model": "m", "max_tokens": 64}]
        assert "content-type: application/json\r\n" in provider.heads[0]

    with_client(act, [whole(COMPLETION)])


def test_a_providers_cookie_is_not_sent_back_with_the_next_request() -> None:
    script = [whole(COMPLETION, set_cookie="who=somebody")]

    async def run() -> list[str]:
        async with scripted(script) as provider:
            by_name = provider.base_url.replace("127.0.0.1", "localhost")  # of a number, nobody keeps cookies
            async with UpstreamClient([config(by_name)], TIMEOUTS) as client:
                for _ in range(2):
                    await client.start("m", FIELDS, 64, "a", stream=False)
            return provider.heads

    assert [head for head in asyncio.run(run()) if "cookie:" in head] == []


def test_a_stream_always_asks_for_its_usage_and_shows_it_to_who_asked() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        await read(client, {**FIELDS, "stream_options": {"include_usage": False, "other": 1}})
        payloads, _, _ = await read(client, {**FIELDS, "stream_options": {"include_usage": True}})
        assert payloads == [*CHUNKS, USAGE_CHUNK]
        options = [body["stream_options"] for body in provider.bodies]
        assert options == [{"include_usage": True, "other": 1}, {"include_usage": True}]
        assert [body["stream"] for body in provider.bodies] == [True, True]

    with_client(act, stream(ANSWER))


def test_connections_are_used_again_after_a_stream_and_after_an_error() -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        for _ in range(5):
            await read(client)
        with pytest.raises(UpstreamError):
            await client.start("m", FIELDS, 64, "a", stream=False)
        await read(client)
        assert provider.num_connections == 1

    with_client(act, *[stream(ANSWER)] * 5, [whole({}, 500)], stream(ANSWER))


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


@pytest.mark.parametrize("script", [[STALL], [STREAM_HEAD, STALL]])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_cancelled_start_hangs_up_at_once(script: list[bytes | str], streamed: bool) -> None:
    async def act(client: UpstreamClient, provider: Scripted) -> None:
        starting = asyncio.create_task(client.start("m", FIELDS, 64, "a", streamed))
        await provider.asked()
        await asyncio.sleep(0.02)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(provider.hung_up.wait(), 1)

    with_client(act, script)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL], "tool_choice": "required"}])
def test_the_replay_stand_in_streams_what_it_answers_whole(upstream_url: str, extra: dict[str, Any]) -> None:
    model = "gpt-4o-2024-08-06"
    upstream = UpstreamConfig(model=model, base_url=upstream_url, usd_per_m_input=2.5, usd_per_m_output=10)

    async def run() -> tuple[Tally, Tally]:
        async with UpstreamClient([upstream], TIMEOUTS) as client:
            whole_answer = await client.start(model, {**FIELDS, **extra}, 500, "a", stream=False)
            streamed = await client.start(model, {**FIELDS, **extra}, 500, "b", stream=True)
            assert len([payload async for payload in streamed]) > 5
        return whole_answer.tally, streamed.tally

    whole_tally, streamed_tally = asyncio.run(run())
    assert whole_tally == streamed_tally
    assert whole_tally.finished
    assert whole_tally.completion_bytes > 50
