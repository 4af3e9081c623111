"""Streams over real HTTP: relayed, broken off, dropped; charged for what was seen, whatever happens."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.serving.prompt_tokens import estimate
from seqroute_ray.serving.sse import SseParser, encode

from .scripted_provider import RESET, STREAM_END, STREAM_HEAD, Script, Step, part
from .service_support import Api, answered, api_over, ending, refused, stalled, streamed, words
from .support import QUESTIONS, trio

MODEL = trio().names[2]  # 2,500 nano-dollars a prompt token, 10,000 a completion token
ASK: dict[str, Any] = {"model": MODEL, "stream": True, "max_tokens": 100}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "stream": True,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": QUESTIONS[0]}],
}


def events(text: str) -> list[Any]:
    """The data of all events; [DONE] as text."""
    payloads = [event.data for event in SseParser().feed(text.encode())]
    return [json.loads(payload) if payload != b"[DONE]" else "[DONE]" for payload in payloads]


def text_of(text: str) -> str:
    choices = [choice for event in events(text) if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def read_and_drop(api: Api, body: dict[str, Any] | None = None, path: str = "/v1/chat/completions") -> bytes:
    """Ask for a stream, read its first bytes, and close the connection."""
    body = body or {"messages": [{"role": "user", "content": QUESTIONS[0]}], **ASK}
    response = await api.http.post(api.base_url + path, json=body, headers=api.headers)
    first = await response.content.readany()
    response.close()
    return first


async def drop_before_the_first_byte(api: Api) -> None:
    async def ask() -> None:
        await api.chat(**ASK)

    asking = asyncio.create_task(ask())
    await api.provider.asked()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def seen_usd(bound: int, num_bytes: int) -> float:
    """The price of the whole prompt bound and of a third of the bytes that were seen, rounded up."""
    return (bound * 2500 + -(-num_bytes // 3) * 10_000) / 1e9


def prompt_bound() -> int:
    return estimate([], [QUESTIONS[0]]).bound


def test_a_stream_is_relayed_and_charged_by_its_usage(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, streamed("one ", "two")) as api:
            reply = await api.chat(**ASK)
            session = await api.settled()
            decision = (await api.call("GET", f"/v1/decisions/{reply.headers['x-seqroute-decision']}")).body
        assert text_of(reply.body) == "one two"
        assert events(reply.body)[-1] == "[DONE]"
        assert not any("usage" in event or "seqroute" in event for event in events(reply.body)[:-1])
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-seqroute-model"] == MODEL
        assert session["spent_usd"] == (5 * 2500 + 7 * 10_000) / 1e9
        assert session["num_turns"] == 1
        assert (decision["cost_nusd"], decision["finished"]) == (82_500, True)
        assert api.provider.bodies[0]["stream_options"] == {"include_usage": True}

    asyncio.run(scenario())


def test_a_client_that_asks_for_usage_also_gets_what_the_turn_cost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, streamed("one")) as api:
            reply = await api.chat(**ASK, stream_options={"include_usage": True})
        *_, last, done = events(reply.body)
        assert done == "[DONE]"
        assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 7}
        assert last["seqroute"]["cost_usd"] == 82_500 / 1e9
        assert last["seqroute"]["decision"]["model"] == MODEL

    asyncio.run(scenario())


TRUNCATED: list[tuple[Script, str]] = [
    ([STREAM_HEAD, *words("one ", "two"), STREAM_END], "upstream_truncated"),
    ([STREAM_HEAD, *words("one ", "two"), RESET], "upstream_truncated"),
]


@pytest.mark.parametrize(("script", "code"), TRUNCATED, ids=["ends early", "reset"])
def test_a_truncated_stream_ends_with_an_error_and_costs_what_was_seen(
    tmp_path: Path, script: Script, code: str
) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, script) as api:
            reply = await api.chat(**ASK)
            session = await api.settled()
            decision = (await api.call("GET", f"/v1/decisions/{reply.headers['x-seqroute-decision']}")).body
        last = events(reply.body)[-1]
        assert text_of(reply.body) == "one two"
        assert last["error"]["code"] == code
        assert MODEL in last["error"]["message"]
        assert session["spent_usd"] == seen_usd(prompt_bound(), len("one two"))
        assert (session["num_turns"], session["reserved_usd"]) == (1, 0)
        assert not decision["finished"]

    asyncio.run(scenario())


def test_a_truncated_stream_of_anthropics_api_ends_with_its_error_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, TRUNCATED[0][0]) as api:
            reply = await api.call("POST", "/v1/messages", MESSAGES)
            session = await api.settled()
        last = events(reply.body)[-1]
        assert (last["type"], last["error"]["type"], last["error"]["code"]) == (
            "error",
            "api_error",
            "upstream_truncated",
        )
        assert session["spent_usd"] > 0

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_client_that_drops_a_stream_ends_the_call_and_pays_for_what_was_seen(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, stalled("one ", "two")) as api:
            body = MESSAGES if path == "/v1/messages" else None
            assert b"one" in await read_and_drop(api, body, path)
            await asyncio.wait_for(api.provider.hung_up.wait(), 10)  # the provider's connection is closed
            session = await api.settled()
            metrics = await api.metrics()
        assert session["spent_usd"] == seen_usd(prompt_bound(), len("one two"))
        assert session["num_turns"] == 1
        assert metrics["seqroute_reserved_usd"] == pytest.approx(0, abs=1e-12)

    asyncio.run(scenario())


def test_a_client_that_leaves_before_the_first_byte_leaves_no_reservation(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *stalled("one")]) as api:
            await drop_before_the_first_byte(api)
            gate.set()
            await asyncio.wait_for(api.provider.hung_up.wait(), 10)
            session = await api.settled()
        assert session["num_turns"] == 1
        assert 0 < session["spent_usd"] <= seen_usd(prompt_bound(), len("one"))

    asyncio.run(scenario())


@pytest.mark.parametrize("dropped_at", ["first chunk", "before"])
def test_with_an_idempotency_key_a_dropped_stream_is_completed_and_given_again_byte_for_byte(
    tmp_path: Path, dropped_at: str
) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        whole: list[Step] = [STREAM_HEAD, *words("one "), *words("two"), *ending(), STREAM_END]
        slow: list[Step] = [STREAM_HEAD, *words("one "), gate, *words("two"), *ending(), STREAM_END]
        script = slow if dropped_at == "first chunk" else [gate, *whole]
        async with api_over(tmp_path, script, whole) as api:
            api.headers["idempotency-key"] = "k"
            if dropped_at == "first chunk":
                first = await read_and_drop(api)
            else:
                await drop_before_the_first_byte(api)
                first = b"data: "
            gate.set()
            session = await api.settled()
            again, once_more = await api.chat(**ASK), await api.chat(**ASK)
            after = await api.session()
            assert len(api.provider.bodies) == 1
            unbroken = await api.chat(**ASK, headers={"idempotency_key": "other"})
        assert again.status == 200
        assert again.headers["x-seqroute-replayed"] == "true"
        assert again.headers["content-type"].startswith("text/event-stream")
        assert again.body == once_more.body == unbroken.body
        assert again.body.encode().startswith(first)
        assert text_of(again.body) == "one two"
        assert session == after
        assert session["spent_usd"] == 82_500 / 1e9

    asyncio.run(scenario())


def test_a_stream_that_broke_off_frees_its_idempotency_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, TRUNCATED[0][0], streamed("whole")) as api:
            api.headers["idempotency-key"] = "k"
            broken, again = await api.chat(**ASK), await api.chat(**ASK)
        assert "error" in events(broken.body)[-1]
        assert text_of(again.body) == "whole"
        assert "x-seqroute-replayed" not in again.headers

    asyncio.run(scenario())


def test_a_stream_that_never_began_is_answered_as_an_error_of_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, refused(400), answered()) as api:
            refusal, no_stream = await api.chat(**ASK), await api.chat(**ASK)
            session = await api.settled()
        assert (refusal.status, refusal.body["error"]["code"]) == (502, "upstream_refused")
        assert (no_stream.status, no_stream.body["error"]["code"]) == (502, "upstream_malformed")
        assert session["num_turns"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("choices", [[7], [{"delta": "text"}], {"delta": {}}])
def test_chunks_that_are_no_chat_completion_end_the_stream_and_are_charged(tmp_path: Path, choices: Any) -> None:
    async def scenario() -> None:
        odd = part(encode(json.dumps({"id": "c", "choices": choices}).encode()))
        async with api_over(tmp_path, [STREAM_HEAD, *words("one"), odd, *ending(), STREAM_END]) as api:
            api.headers["idempotency-key"] = "k"
            reply = await api.call("POST", "/v1/messages", MESSAGES)
            session = await api.settled()
        assert events(reply.body)[-1]["error"]["code"] == "upstream_malformed"
        assert (session["num_turns"], session["reserved_usd"]) == (1, 0)
        assert session["spent_usd"] > 0

    asyncio.run(scenario())
