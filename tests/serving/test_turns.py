"""What becomes of the money when a provider fails or a client hangs up; against real HTTP providers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from aiohttp import web
from seqroute_ray.serving.protocol import TurnHeaders, parse_chat

from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.router import Decision, Prompt
from seqroute_ray.serving.turns import Answer, TurnService
from seqroute_ray.serving.upstream import UpstreamError

from .support import QUESTIONS, TYPES, random_artefact, settings, trio, write_settings

T = TypeVar("T")
HEADERS = TurnHeaders(session_id="s", budget_nusd=10**7)
REQUEST = parse_chat({"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 50, "temperature": 0.5})
SECRET = "not-a-real-key"  # what a test sets as API key


class Provider:
    """Answers with `status` and `text` after `delay_s`; remembers what it was asked."""

    def __init__(self, text: str, status: int = 200, delay_s: float = 0.0) -> None:
        self.text, self.status, self.delay_s = text, status, delay_s
        self.asked: list[tuple[dict[str, Any], str | None]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((await request.json(), request.headers.get("authorization")))
        await asyncio.sleep(self.delay_s)
        return web.Response(text=self.text, status=self.status, content_type="application/json")


def with_usage(**usage: Any) -> Provider:
    return Provider(json.dumps({"usage": usage}))


def in_service(folder: Path, provider: Provider, act: Callable[[TurnService], Awaitable[T]], **changes: Any) -> T:
    """The result of `act` on a service whose only provider is `provider`."""

    async def scenario() -> T:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", provider.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fields = settings(folder, random_artefact(trio()), f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        for upstream in fields["upstreams"]:
            upstream.update(changes.get("upstream", {}))
        fields["upstream_timeout_s"] = changes.get("timeout_s", 30)
        async with TurnService(load_config(write_settings(folder, fields))) as service:
            result = await act(service)
        await runner.cleanup()
        return result

    return asyncio.run(scenario())


async def answer(service: TurnService) -> Answer:
    return await service.answer(REQUEST, HEADERS)


async def failure(service: TurnService) -> tuple[UpstreamError, Account]:
    with pytest.raises(UpstreamError) as caught:
        await answer(service)
    return caught.value, await service.account("s")


def test_usage_is_priced_by_the_catalog(tmp_path: Path) -> None:
    result = in_service(tmp_path, with_usage(prompt_tokens=5, completion_tokens=7), answer)
    assert result.cost_nusd == round(float(trio().cost_usd(result.decision.action, 5, 7)) * 1e9)
    assert (result.account.spent_nusd, result.account.reserved_nusd) == (result.cost_nusd, 0)
    assert result.account.context == {"num_turns": 1, "summary_sum": list(result.decision.summary)}


def test_the_prompt_and_the_named_type_of_task_are_what_the_router_decides_on(tmp_path: Path) -> None:
    async def both(service: TurnService) -> tuple[Decision, Decision]:
        prompt = Prompt(tokens=REQUEST.prompt_tokens, tokens_bound=REQUEST.prompt_tokens_bound, task_type=TYPES[1])
        expected = service.router.decide(REQUEST.text, Account("s", 10**7, 0, 0, 0, {}), prompt, 50, 0.0)
        return await service.decide(REQUEST, replace(HEADERS, task_type=TYPES[1])), expected

    decision, expected = in_service(tmp_path, with_usage(), both)
    assert decision == expected


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
    result = in_service(tmp_path, Provider(json.dumps({"usage": usage})), answer)
    assert result.account.spent_nusd == result.decision.reserve_nusd
    assert result.account.reserved_nusd == 0


def test_a_provider_that_ignores_max_tokens_is_recorded_in_full(tmp_path: Path) -> None:
    result = in_service(tmp_path, with_usage(prompt_tokens=5, completion_tokens=5_000_000), answer)
    assert result.account.spent_nusd == result.cost_nusd > result.account.budget_nusd
    assert result.account.overshoot_nusd == result.cost_nusd - result.decision.reserve_nusd


def test_the_provider_gets_its_own_model_name_the_clamp_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQROUTE_TEST_KEY", SECRET)
    provider = with_usage(prompt_tokens=5, completion_tokens=7)
    change = {
        "api_key_env": "SEQROUTE_TEST_KEY",
        "upstream_model": "theirs",
        "max_tokens_field": "max_completion_tokens",
    }
    in_service(tmp_path, provider, answer, upstream=change)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    expected = {"messages": messages, "temperature": 0.5, "model": "theirs", "max_completion_tokens": 50}
    assert provider.asked == [(expected, f"Bearer {SECRET}")]


@pytest.mark.parametrize("status", [302, 400, 401, 429, 500])
def test_a_refusal_gives_the_reservation_back(tmp_path: Path, status: int) -> None:
    body = json.dumps({"error": {"message": "key abc is wrong"}})
    error, account = in_service(tmp_path, Provider(body, status), failure)
    assert (error.status, error.may_be_billed) == (status, False)
    assert ("key abc" in str(error)) == (status != 401)  # a provider may quote a part of the key
    assert (account.spent_nusd, account.reserved_nusd) == (0, 0)


@pytest.mark.parametrize("text", ["", "[]", "<html>"])
def test_an_answer_that_cannot_be_read_is_charged(tmp_path: Path, text: str) -> None:
    error, account = in_service(tmp_path, Provider(text), failure)
    assert error.may_be_billed
    assert account.spent_nusd > 0
    assert account.reserved_nusd == 0


def test_a_provider_that_does_not_answer_in_time_is_charged(tmp_path: Path) -> None:
    error, account = in_service(tmp_path, Provider("{}", delay_s=5), failure, timeout_s=0.3)
    assert error.may_be_billed
    assert account.spent_nusd > 0
    assert account.reserved_nusd == 0


def test_a_client_that_hangs_up_leaves_no_reservation(tmp_path: Path) -> None:
    provider = with_usage(prompt_tokens=5, completion_tokens=7)
    provider.delay_s = 0.3

    async def hang_up(service: TurnService) -> tuple[Account, Account]:
        turn = asyncio.create_task(answer(service))
        while not provider.asked:
            await asyncio.sleep(0.01)
        during = await service.account("s")
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        while (await service.account("s")).reserved_nusd:
            await asyncio.sleep(0.01)
        return during, await service.account("s")

    during, after = in_service(tmp_path, provider, hang_up)
    assert during.reserved_nusd > 0
    assert after.context["num_turns"] == 1
    assert 0 < after.spent_nusd < during.reserved_nusd


def test_a_server_that_stops_finishes_its_paid_turns(tmp_path: Path) -> None:
    provider = with_usage(prompt_tokens=5, completion_tokens=7)
    provider.delay_s = 0.3

    async def leave(service: TurnService) -> "asyncio.Task[Answer]":
        task = asyncio.create_task(answer(service))
        while not provider.asked:
            await asyncio.sleep(0.01)
        return task

    task = in_service(tmp_path, provider, leave)
    assert task.result().account.reserved_nusd == 0


def test_parallel_turns_all_join_the_sessions_memory(tmp_path: Path) -> None:
    provider = with_usage(prompt_tokens=5, completion_tokens=7)
    provider.delay_s = 0.1

    async def crowd(service: TurnService) -> tuple[list[Answer], Account]:
        answers = await asyncio.gather(*(answer(service) for _ in range(8)))
        return answers, await service.account("s")

    answers, account = in_service(tmp_path, provider, crowd)
    assert account.context["num_turns"] == 8
    summary_sum = np.sum([each.decision.summary for each in answers], axis=0)
    np.testing.assert_allclose(account.context["summary_sum"], summary_sum)
