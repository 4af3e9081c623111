"""What binds a turn to a model: a pin, an open tool call, reasoning; and what a kept prefix cache is worth."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from .service_support import Api, answered, api_over, refused
from .support import QUESTIONS, trio

USER = {"role": "user", "content": QUESTIONS[0]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "42"}
TOOL_LOOP: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
REASONED: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": "hm", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
    USER,
]
PLAIN: list[dict[str, Any]] = [USER, {"role": "assistant", "content": "yes"}, USER]


async def route(api: Api, messages: list[dict[str, Any]], headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return (await api.call("POST", "/v1/route", {"messages": messages, **fields}, **(headers or {}))).body


@pytest.mark.parametrize("name", trio().names)
def test_a_pinned_model_answers(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            reply = await api.chat(model=name, max_tokens=20)
            routed = [await route(api, [USER], model=model) for model in ("seqroute", "", None)]
        decision = reply.body["seqroute"]["decision"]
        assert (decision["model"], decision["chosen_by"], decision["propensity"]) == (name, "pinned", 1.0)
        assert decision["masked"] == {other: f"pinned: {name}" for other in trio().names if other != name}
        assert api.provider.bodies[0]["model"] == name
        assert {each["chosen_by"] for each in routed} == {"policy"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("messages", "because"), [(TOOL_LOOP, "tool_call"), (REASONED, "reasoning")], ids=["tools", "reasoning"]
)
@pytest.mark.parametrize("name", trio().names)
def test_a_conversation_stays_with_the_model_that_it_belongs_to(
    tmp_path: Path, messages: list[dict[str, Any]], because: str, name: str
) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            unbound = await route(api, messages)  # no turn of this session was answered by anybody here
            await api.chat(model=name, max_tokens=20)
            bound, dear = await route(api, messages), await route(api, messages, {"x_lambda": "1e9"})
            free = await route(api, PLAIN)
        assert unbound["chosen_by"] == free["chosen_by"] == "policy"
        for decision in (bound, dear):
            assert (decision["model"], decision["chosen_by"], decision["propensity"]) == (name, because, 1.0)
            assert set(decision["masked"]) == set(trio().names) - {name}

    asyncio.run(scenario())


def test_a_pin_wins_over_a_lock(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, other, _ = trio().names
        async with api_over(tmp_path, answered()) as api:
            await api.chat(model=first, max_tokens=20)
            decision = await route(api, TOOL_LOOP, model=other)
        assert (decision["model"], decision["chosen_by"]) == (other, "pinned")

    asyncio.run(scenario())


def test_a_locked_turn_is_not_carried_to_another_model_when_its_own_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        name = trio().names[0]
        async with api_over(tmp_path, answered(), refused(500), retries=0) as api:
            await api.chat(model=name, max_tokens=20)
            body = {"messages": TOOL_LOOP, "max_tokens": 20}
            reply = await api.call("POST", "/v1/chat/completions", body)
        assert (reply.status, reply.body["error"]["code"]) == (502, "upstream_server")
        assert [body["model"] for body in api.provider.bodies] == [name, name]

    asyncio.run(scenario())


def test_a_kept_prefix_is_visible_in_the_predicted_cost_and_can_change_the_choice(tmp_path: Path) -> None:
    long = {"role": "user", "content": "word " * 8000}  # 10,000 typical tokens
    messages = [long, {"role": "assistant", "content": "yes"}, USER]
    name = trio().names[2]

    async def scenario() -> None:
        cached = {name: {"usd_per_m_cached_input": 0.0}}
        async with api_over(tmp_path, answered(), upstream_of=cached) as api:
            rich = {"x_session_budget_usd": "1"}
            await api.call("POST", "/v1/chat/completions", {"messages": [long], "model": name}, **rich)
            warm = await route(api, messages, rich)
            cold = await route(api, messages, {**rich, "x_session_id": "new"})
            lambdas = [f"{2.0**power}" for power in range(40)]
            choices = []
            for value in lambdas:
                asks = [{**rich, "x_lambda": value}, {**rich, "x_lambda": value, "x_session_id": "new"}]
                choices.append([(await route(api, messages, each))["model"] for each in asks])
        saved = cold["predicted_cost_usd"][name] - warm["predicted_cost_usd"][name]
        assert saved == pytest.approx(10_000 * 2.5e-6, rel=0.01)
        for other in set(trio().names) - {name}:
            assert cold["predicted_cost_usd"][other] == pytest.approx(warm["predicted_cost_usd"][other])
        assert [name, trio().names[0]] in choices  # it is worth staying with the model that has the prompt

    asyncio.run(scenario())
