"""Retries and fallback: which provider is asked next, what each attempt holds and costs; over a scripted provider."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.ledger import Attempt, AttemptState
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.turns import TurnService
from seqroute_ray.serving.upstream import UpstreamError

from .scripted_provider import RESET, Scripted
from .service_support import account_of, answer, answered, api_over, ask_for, refused, service_over
from .support import random_artefact, trio

FAST = {"breaker": {"failures_to_open": 1, "cooldown_s": 30.0}, "retries": 0}


def models_of(provider: Scripted) -> list[str]:
    return [body["model"] for body in provider.bodies]


async def attempts_of(service: TurnService) -> list[Attempt]:
    books = await service.ledger.books("local:s")
    assert books.account.reserved_nusd == 0
    return sorted(books.attempts, key=lambda attempt: attempt.attempt_id)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failed_call_that_cost_nothing_is_tried_again_under_a_reservation_of_its_own(
    tmp_path: Path, status: int
) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, refused(status), answered()) as (service, provider):
            result = await answer(service, ask_for())
            failed, good = await attempts_of(service)
            record = await service.decision("dec_1", "local")
        model = result["seqroute"]["decision"]["model"]
        assert models_of(provider) == [model, model]
        assert [failed.attempt_id, good.attempt_id] == ["dec_1.0.0", "dec_1.1.0"]
        for attempt, head in zip((failed, good), provider.heads, strict=True):
            assert f"x-client-request-id: {attempt.attempt_id}\r\n" in head
        assert (failed.state, failed.cost_nusd) == (AttemptState.RELEASED, 0)
        assert (good.state, good.cost_nusd) == (AttemptState.SETTLED, round(result["seqroute"]["cost_usd"] * 1e9))
        kind = "rate_limit" if status == 429 else "server"
        assert record["failed_attempts"] == [{"model": model, "error": kind}]

    asyncio.run(scenario())


def test_a_model_that_keeps_failing_is_left_for_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        scripts = (refused(500), refused(500), answered())
        async with service_over(tmp_path, *scripts) as (service, provider):
            result = await answer(service, ask_for())
            assert len(await attempts_of(service)) == 3
        first, again, other = models_of(provider)
        assert first == again != other
        assert result["seqroute"]["decision"]["model"] == other
        assert result["seqroute"]["decision"]["masked"][first] == "failed (server)"

    asyncio.run(scenario())


def test_a_provider_that_asks_for_a_long_wait_is_left_for_the_next_one_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, refused(429, retry_after="30"), answered()) as (service, provider):
            await asyncio.wait_for(answer(service, ask_for()), 5)
        first, other = models_of(provider)
        assert first != other

    asyncio.run(scenario())


def test_a_provider_that_cannot_be_reached_is_left_for_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            liked = (await service.decide(ask_for())).model
        dead = {liked: {"base_url": "http://127.0.0.1:9/v1"}}
        async with service_over(tmp_path, answered(), upstream_of=dead) as (service, provider):
            result = await answer(service, ask_for())
            record = await service.decision("dec_1", "local")
        assert models_of(provider) == [result["seqroute"]["decision"]["model"]] != [liked]
        assert record["failed_attempts"] == [{"model": liked, "error": "connect"}] * 2

    asyncio.run(scenario())


def test_when_every_model_fails_the_last_failure_is_told_and_nothing_is_charged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, refused(500), retries=0) as (service, provider):
            with pytest.raises(UpstreamError) as caught:
                await answer(service, ask_for())
            attempts = await attempts_of(service)
            assert (await account_of(service)).spent_nusd == 0
        assert sorted(models_of(provider)) == sorted(trio().names)
        assert caught.value.retryable
        assert [attempt.state for attempt in attempts] == [AttemptState.RELEASED] * 3

    asyncio.run(scenario())


def test_a_call_that_may_have_been_worked_on_is_charged_and_not_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, [RESET]) as (service, provider):
            with pytest.raises(UpstreamError):
                await answer(service, ask_for())
            (attempt,) = await attempts_of(service)
        assert len(provider.bodies) == 1
        assert (attempt.state, attempt.cost_nusd) == (AttemptState.SETTLED, attempt.amount_nusd)

    asyncio.run(scenario())


def test_a_pinned_model_that_fails_is_not_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, refused(500), answered(), retries=0) as (service, provider):
            with pytest.raises(UpstreamError):
                await answer(service, ask_for(model=trio().names[1]))
        assert models_of(provider) == [trio().names[1]]

    asyncio.run(scenario())


def test_when_all_are_left_alone_it_is_a_503_that_says_when_to_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, refused(500), **FAST) as api:
            first, second = await api.chat(), await api.chat()
            pinned = await api.chat(model=trio().names[0])
            ready = await api.call("GET", "/readyz")
            session = await api.session()
        assert (first.status, first.body["error"]["code"]) == (502, "upstream_server")
        assert (first.headers["retry-after"], first.headers["x-should-retry"]) == ("1", "true")
        for reply in (second, pinned):
            assert (reply.status, reply.body["error"]["code"]) == (503, "no_model_available")
            assert 25 <= int(reply.headers["retry-after"]) <= 30
        assert "failed repeatedly" in second.body["error"]["message"]
        assert sorted(ready.body["left_alone"]) == sorted(trio().names)
        assert (session["spent_usd"], session["reserved_usd"], session["num_turns"]) == (0, 0, 0)
        assert len(api.provider.bodies) == 3

    asyncio.run(scenario())


def test_a_pinned_model_that_is_left_alone_says_when_it_will_be_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, refused(500), answered(), **FAST) as api:
            failed = await api.chat(model=trio().names[0])
            pinned = await api.chat(model=trio().names[0])
            routed = await api.chat()
        assert (failed.status, pinned.status, routed.status) == (502, 503, 200)
        assert 25 <= int(pinned.headers["retry-after"]) <= 30
        assert "left alone" in routed.body["seqroute"]["decision"]["masked"][trio().names[0]]

    asyncio.run(scenario())


def test_a_prompt_that_no_model_can_take_is_the_callers_mistake(tmp_path: Path) -> None:
    small = Catalog(tuple(replace(model, max_input_tokens=10) for model in trio().models))

    async def scenario() -> Any:
        async with api_over(tmp_path, answered(), artefact=random_artefact(small)) as api:
            reply = await api.chat("word " * 100)
            assert api.provider.bodies == []
            return reply

    reply = asyncio.run(scenario())
    assert (reply.status, reply.body["error"]["code"]) == (400, "context_length_exceeded")
    assert "prompt tokens exceed its limit of 10" in reply.body["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"


def test_a_session_that_is_closed_while_its_turn_runs_gets_no_second_attempt(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *refused(500)], answered()) as api:
            asking = asyncio.create_task(api.chat())
            await api.provider.asked()
            await api.call("DELETE", "/v1/sessions/s")
            gate.set()
            reply = await asking
            session = await api.session()
        assert (reply.status, reply.body["error"]["code"]) == (409, "ledger_conflict")
        assert "is closed" in reply.body["error"]["message"]
        assert (session["spent_usd"], session["reserved_usd"]) == (0, 0)
        assert len(api.provider.bodies) == 1

    asyncio.run(scenario())


def test_a_turn_without_money_is_refused_before_any_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, provider):
            with pytest.raises(RequestError) as caught:
                await answer(service, ask_for(budget_nusd=1000))
            assert (await service.ledger.books("local:s")).attempts == []
        assert (caught.value.status, caught.value.code) == (402, "budget_exhausted")
        assert provider.bodies == []

    asyncio.run(scenario())
