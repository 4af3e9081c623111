"""Idempotency keys over real HTTP: one key, one answer, one charge."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from .scripted_provider import Script
from .service_support import Api, answered, api_over, refused, streamed
from .support import QUESTIONS

COST_USD = (5 * 2500 + 7 * 10_000) / 1e9
PINNED: dict[str, Any] = {"model": "gpt-4o-2024-08-06", "max_tokens": 50}


async def keyed(api: Api, key: str = "k", text: str = QUESTIONS[0], **headers: str) -> tuple[int, str, bytes]:
    """Status, whether it is a replay, and the body's bytes."""
    body = {"messages": [{"role": "user", "content": text}], **PINNED}
    named = {"idempotency-key": key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    url = f"{api.base_url}/v1/chat/completions"
    async with api.http.post(url, json=body, headers={**api.headers, **named}) as response:
        return response.status, response.headers.get("x-seqroute-replayed", ""), await response.read()


def test_the_same_key_and_body_get_the_same_bytes_and_pay_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            replies = [await keyed(api) for _ in range(3)]
            session = await api.session()
            metrics = await api.metrics()
        assert [(status, replay) for status, replay, _ in replies] == [(200, ""), (200, "true"), (200, "true")]
        assert len({body for _, _, body in replies}) == 1
        assert len(api.provider.bodies) == 1
        assert (session["spent_usd"], session["num_turns"]) == (COST_USD, 1)
        assert metrics["seqroute_replayed_answers_total"] == 2

    asyncio.run(scenario())


def test_twenty_parallel_requests_with_one_key_pay_once_and_all_get_the_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered(), idempotency_wait_s=20) as api:
            replies = await asyncio.gather(*(keyed(api) for _ in range(20)))
            session = await api.session()
        assert {status for status, _, _ in replies} == {200}
        assert sorted(replay for _, replay, _ in replies) == ["", *["true"] * 19]
        assert len({body for _, _, body in replies}) == 1
        assert len(api.provider.bodies) == 1
        assert (session["spent_usd"], session["num_turns"]) == (COST_USD, 1)

    asyncio.run(scenario())


def test_without_patience_a_request_beside_a_running_one_of_its_key_is_told_to_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *answered()]) as api:
            first = asyncio.create_task(keyed(api))
            await api.provider.asked()
            beside = await api.chat(**PINNED, headers={"idempotency_key": "k"})
            gate.set()
            assert (await first)[0] == 200
            later = await keyed(api)
        assert (beside.status, beside.body["error"]["code"]) == (409, "idempotency_in_flight")
        assert (beside.headers["retry-after"], beside.headers["x-should-retry"]) == ("1", "true")
        assert later[:2] == (200, "true")
        assert len(api.provider.bodies) == 1

    asyncio.run(scenario())


def test_another_body_under_the_key_is_a_conflict(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            assert (await keyed(api))[0] == 200
            other = await api.chat(QUESTIONS[1], **PINNED, headers={"idempotency_key": "k"})
            same_key_elsewhere = await keyed(api, text=QUESTIONS[1], x_session_id="another")
            session = await api.session()
        assert (other.status, other.body["error"]["code"]) == (409, "idempotency_conflict")
        assert other.headers["x-should-retry"] == "false"
        assert same_key_elsewhere[:2] == (200, "")  # a key belongs to a session
        assert session["num_turns"] == 1

    asyncio.run(scenario())


FAILURES: list[tuple[Script, int]] = [(refused(400), 502), (refused(500), 502)]


@pytest.mark.parametrize(("script", "status"), FAILURES)
def test_a_request_that_failed_frees_its_key(tmp_path: Path, script: Script, status: int) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, script, answered(), retries=0) as api:
            assert (await keyed(api))[:2] == (status, "")
            assert (await keyed(api))[:2] == (200, "")
            assert (await keyed(api))[:2] == (200, "true")

    asyncio.run(scenario())


def test_a_request_that_was_refused_for_want_of_money_frees_its_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            api.headers["x-session-budget-usd"] = "0.000001"
            assert (await keyed(api))[0] == 402
            await api.call("PUT", "/v1/sessions/s", {"budget_usd": 0.01})
            del api.headers["x-session-budget-usd"]
            assert (await keyed(api))[:2] == (200, "")

    asyncio.run(scenario())


def test_a_stream_is_given_again_byte_for_byte(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, streamed("one ", "two")) as api:
            fields: dict[str, Any] = {**PINNED, "stream": True, "stream_options": {"include_usage": True}}
            first, again = [await api.chat(headers={"idempotency_key": "k"}, **fields) for _ in range(2)]
            session = await api.settled()
        assert first.body == again.body
        assert "x-seqroute-replayed" not in first.headers
        assert again.headers["x-seqroute-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-seqroute-decision"] == first.headers["x-seqroute-decision"]
        assert (session["num_turns"], session["spent_usd"]) == (1, COST_USD)

    asyncio.run(scenario())


def test_a_kept_answer_is_given_whatever_became_of_its_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            first = await keyed(api)
            await api.call("PUT", "/v1/sessions/s", {"budget_usd": 0.02})
            raised = await keyed(api)  # it repeats the budget that it was sent with
            await api.call("DELETE", "/v1/sessions/s")
            closed, new = await keyed(api), await keyed(api, key="new")
            again = await keyed(api, key="new")
        assert raised == closed == (200, "true", first[2])
        assert new[0] == again[0] == 409  # and not "in flight": the key was given back

    asyncio.run(scenario())
