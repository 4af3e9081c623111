"""What becomes of the money of whole answers, whatever the provider says; against a real HTTP provider."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.openai_answers import OpenAIRenderer
from seqroute_ray.serving.router import Prompt, Wish
from seqroute_ray.serving.turns import TurnService
from seqroute_ray.serving.upstream import UpstreamError

from .scripted_provider import whole
from .service_support import account_of, answer, answered, api_over, ask_for, refused, service_over
from .support import QUESTIONS, TYPES, trio

SECRET = "not-a-real-key"  # what a test sets as API key


def test_usage_is_priced_by_the_catalog(tmp_path: Path) -> None:
    async def scenario() -> tuple[Any, Account]:
        async with service_over(tmp_path, answered(prompt_tokens=5, completion_tokens=7)) as (service, _):
            return await answer(service, ask_for(max_tokens=50)), await account_of(service)

    result, account = asyncio.run(scenario())
    paid = result["seqroute"]
    assert account.spent_nusd == round(float(trio().cost_usd(paid["decision"]["action"], 5, 7)) * 1e9)
    assert paid["cost_usd"] == paid["spent_usd"] == account.spent_nusd / 1e9
    assert (account.reserved_nusd, account.num_turns) == (0, 1)
    assert account.latest == {"model": paid["decision"]["model"]}
    assert paid["turn"] == 0


def test_the_prompt_and_the_named_type_of_task_are_what_the_router_decides_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            ask = ask_for(max_tokens=50, knobs={"task_type": TYPES[1]})
            request, router = ask.request, service.policies.current
            prompt = Prompt(tokens=request.prompt_tokens, tokens_bound=request.prompt_tokens_bound, task_type=TYPES[1])
            account = Account(ask.session.session_id, 10**7)
            expected = router.choose(router.embed(QUESTIONS[0]), account, prompt, Wish(max_tokens=50))
            assert await service.decide(ask) == expected

    asyncio.run(scenario())


USELESS_USAGE = [
    None,
    {},
    {"prompt_tokens": 5},
    {"prompt_tokens": 5, "completion_tokens": 10**30},
    {"prompt_tokens": -1, "completion_tokens": 7},
    {"prompt_tokens": "5"},
]


@pytest.mark.parametrize("usage", USELESS_USAGE)
def test_without_usage_the_whole_reservation_is_charged(tmp_path: Path, usage: Any) -> None:
    async def scenario() -> tuple[Any, Account]:
        choices = [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]
        async with service_over(tmp_path, [whole({"choices": choices, "usage": usage})]) as (service, _):
            return await answer(service, ask_for()), await account_of(service)

    result, account = asyncio.run(scenario())
    assert account.spent_nusd == round(result["seqroute"]["decision"]["reserve_usd"] * 1e9) > 0
    assert account.reserved_nusd == 0


def test_a_provider_that_ignores_max_tokens_is_recorded_in_full(tmp_path: Path) -> None:
    async def scenario() -> tuple[Any, Account]:
        async with service_over(tmp_path, answered(completion_tokens=5_000_000)) as (service, _):
            return await answer(service, ask_for()), await account_of(service)

    result, account = asyncio.run(scenario())
    reserve_nusd = round(result["seqroute"]["decision"]["reserve_usd"] * 1e9)
    assert account.spent_nusd > account.budget_nusd
    assert account.overshoot_nusd == account.spent_nusd - reserve_nusd
    assert result["seqroute"]["remaining_usd"] == 0


def test_the_provider_gets_its_own_model_name_the_clamp_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQROUTE_TEST_KEY", SECRET)
    upstream = {
        "api_key_env": "SEQROUTE_TEST_KEY",
        "upstream_model": "theirs",
        "max_tokens_field": "max_completion_tokens",
    }

    async def scenario() -> None:
        async with service_over(tmp_path, answered(), upstream=upstream) as (service, provider):
            await answer(service, ask_for(max_tokens=50, temperature=0.5))
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        sent = {"messages": messages, "temperature": 0.5, "model": "theirs", "max_completion_tokens": 50}
        assert provider.bodies == [sent]
        assert f"authorization: bearer {SECRET}" in provider.heads[0]
        assert "x-client-request-id: dec_1.0.0" in provider.heads[0]

    asyncio.run(scenario())


async def failure(service: TurnService) -> tuple[UpstreamError, Account]:
    with pytest.raises(UpstreamError) as caught:
        await answer(service, ask_for())
    return caught.value, await account_of(service)


@pytest.mark.parametrize("status", [302, 400, 401])
def test_a_refusal_gives_the_reservation_back_and_is_not_repeated(tmp_path: Path, status: int) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, refused(status, "key abc is wrong")) as (service, provider):
            error, account = await failure(service)
        assert (error.status, error.may_be_billed) == (status, False)
        assert ("key abc" in str(error)) == (status != 401)  # a provider may quote a part of the key
        assert (account.spent_nusd, account.reserved_nusd, account.num_turns) == (0, 0, 0)
        assert len(provider.bodies) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("text", [b"", b"[]", b"<html>"])
def test_an_answer_that_cannot_be_read_is_charged_and_not_repeated(tmp_path: Path, text: bytes) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, [whole(text)]) as (service, provider):
            error, account = await failure(service)
        assert error.may_be_billed
        assert account.spent_nusd > 0
        assert account.reserved_nusd == 0
        assert len(provider.bodies) == 1

    asyncio.run(scenario())


def test_a_provider_that_does_not_answer_in_time_is_charged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, [asyncio.Event()], upstream_timeout_s=0.3) as (service, _):
            error, account = await failure(service)
        assert error.may_be_billed
        assert account.spent_nusd > 0
        assert account.reserved_nusd == 0

    asyncio.run(scenario())


def test_a_client_that_hangs_up_leaves_no_reservation(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with service_over(tmp_path, [gate, *answered()]) as (service, provider):
            turn = asyncio.create_task(answer(service, ask_for()))
            await provider.asked()
            during = await account_of(service)
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            gate.set()
            while (await account_of(service)).reserved_nusd:
                await asyncio.sleep(0.01)
            after = await account_of(service)
        assert during.reserved_nusd > 0
        assert after.num_turns == 1
        assert 0 < after.spent_nusd < during.reserved_nusd

    asyncio.run(scenario())


def test_a_server_that_stops_finishes_its_paid_turns(tmp_path: Path) -> None:
    async def scenario() -> Any:
        gate = asyncio.Event()
        async with service_over(tmp_path, [gate, *answered()]) as (service, provider):
            turn = asyncio.create_task(answer(service, ask_for()))
            await provider.asked()
            asyncio.get_running_loop().call_later(0.1, gate.set)
        return turn.result()

    assert asyncio.run(scenario())["seqroute"]["reserved_usd"] == 0


def test_parallel_turns_all_join_the_sessions_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            asks = [ask_for(max_tokens=20, decision_id=f"dec_{number}") for number in range(8)]
            await asyncio.gather(*(answer(service, ask) for ask in asks))
            account = await account_of(service)
            records = [await service.decision(ask.decision_id, "local") for ask in asks]
            log = await service.ledger.session_log(account.session_id)
        assert account.num_turns == len(log.turns) == 8
        assert sorted(record["turn"] for record in records) == list(range(8))
        np.testing.assert_allclose(sum(account.summary_sum[: len(TYPES)]), 8)  # the shares of the types of each turn

    asyncio.run(scenario())


def test_a_decision_record_says_all_but_texts(tmp_path: Path) -> None:
    async def scenario() -> None:
        text = "a canary among the questions"
        async with service_over(tmp_path, answered("a canary among the answers")) as (service, _):
            await answer(service, ask_for(text, max_tokens=20))
            record = await service.decision("dec_1", "local")
        assert "canary" not in json.dumps(record)
        assert (record["prompt_tokens"], record["completion_tokens"]) == (5, 7)
        assert (record["cached_prompt_tokens"], record["reasoning_tokens"]) == (0, 0)
        assert record["finished"]
        assert record["failed_attempts"] == []
        assert record["attempt_id"] == "dec_1.0.0"
        assert record["session_from"] == "x-session-id"
        assert record["propensity"] == 1.0
        assert 0 < record["latency_s"] < 10

    asyncio.run(scenario())


def test_a_turn_that_may_cost_little_is_answered_briefly_by_a_model_that_it_can_pay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            decision = await service.decide(ask_for(knobs={"max_turn_nusd": 50_000}))
            free = await service.decide(ask_for())
        assert decision.reserve_nusd <= 50_000 < free.reserve_nusd

    asyncio.run(scenario())


def test_rendered_answers_carry_what_the_provider_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered("yes")) as (service, _):
            ask = ask_for()
            stored = await service.answer(ask, OpenAIRenderer(ask.request.include_usage))
        body = json.loads(stored.body)  # type: ignore[union-attr]
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "yes"}
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 7}

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": 7}, {"choices": [{"message": None}]}])
def test_an_answer_without_a_message_is_charged_and_told_to_clients_that_need_one(tmp_path: Path, body: Any) -> None:
    async def scenario() -> None:
        said = {**body, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
        async with api_over(tmp_path, [whole(said)]) as api:
            question = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "model": trio().names[2]}
            theirs = await api.call("POST", "/v1/messages", {**question, "max_tokens": 20})
            session = await api.settled()
            passed_on = await api.call("POST", "/v1/chat/completions", question)
        assert (theirs.status, theirs.body["error"]["code"]) == (502, "upstream_malformed")
        assert theirs.body["error"]["charged"]
        assert (session["spent_usd"], session["num_turns"]) == (82_500 / 1e9, 1)
        assert passed_on.status == 200  # as the provider said it

    asyncio.run(scenario())
