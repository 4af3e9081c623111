"""The monthly budget of an API key: shared by its sessions, held beside theirs, never exceeded."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import LedgerUnavailable
from seqroute_ray.core.ledger import Account, Ledger
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.serving import late
from seqroute_ray.serving.keys import Caller
from seqroute_ray.serving.purse import Purse, month_of
from seqroute_ray.serving.requests import RequestError

from .service_support import (
    TURN_KEY,
    Api,
    account_of,
    answer,
    answered,
    api_over,
    ask_for,
    keys_for,
    refused,
    service_over,
    stalled,
)
from .support import random_artefact, spec

TURN_USD = 16 * 10 / 1e6  # free input and 16 tokens: every turn reserves, and costs, exactly this


def one_model() -> PolicyArtefact:
    return random_artefact(Catalog((spec("only", 0.0, 10.0),)))


async def crowd(api: Api, num_turns: int) -> list[int]:
    """Statuses of parallel turns, each of a session of its own."""
    api.headers["authorization"] = f"Bearer {TURN_KEY}"
    asks = (api.chat(max_tokens=16, headers={"x_session_id": f"s{number}"}) for number in range(num_turns))
    return [reply.status for reply in await asyncio.gather(*asks)]


def test_of_parallel_sessions_of_a_key_only_those_that_its_month_can_pay_are_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = {"artefact": one_model(), "keys": keys_for("team", monthly_budget_usd=7 * TURN_USD)}
        async with api_over(tmp_path, answered(prompt_tokens=0, completion_tokens=16), **settings) as api:
            statuses = await crowd(api, 40)
            refusal = await api.chat(max_tokens=16)
            sessions = [await api.session(f"s{number}") for number in range(40)]
        assert (statuses.count(200), statuses.count(402)) == (7, 33)
        assert sum(session["spent_usd"] for session in sessions) == pytest.approx(7 * TURN_USD, abs=1e-12)
        assert {session["reserved_usd"] for session in sessions} == {0}
        error = refusal.body["error"]
        assert (refusal.status, error["code"], error["turn_limit_usd"]) == (402, "budget_exhausted", 0)
        assert "monthly budget" in error["message"]
        assert (error["scope"], "monthly_budget_usd" in error["hint"]) == ("month", True)
        assert error["remaining_usd"] == 0.01  # of the session: it is the month that is spent

    asyncio.run(scenario())


def test_what_a_turn_reserves_and_costs_stands_in_both_accounts(tmp_path: Path) -> None:
    async def scenario() -> None:
        caller = Caller(id="team", monthly_budget_nusd=10**6)
        month = month_of("team", 10**6)
        assert month is not None
        async with service_over(tmp_path, answered(), artefact=one_model()) as (service, _):
            await answer(service, ask_for(caller=caller))
            books = await service.ledger.books(month.account_id)
            session = await account_of(service, owner="team")
        assert books.account.spent_nusd == session.spent_nusd == 70_000
        assert (books.account.reserved_nusd, session.reserved_nusd) == (0, 0)
        assert [entry.kind for entry in books.entries] == ["open", "reserve", "settle"]

    asyncio.run(scenario())


def test_a_failed_call_gives_the_month_its_money_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        caller = Caller(id="team", monthly_budget_nusd=10**6)
        async with service_over(tmp_path, refused(500), answered(), artefact=one_model()) as (service, _):
            await answer(service, ask_for(caller=caller))
            month = month_of("team", 10**6)
            assert month is not None
            books = await service.ledger.books(month.account_id)
        assert [entry.kind for entry in books.entries] == ["open", "reserve", "release", "reserve", "settle"]
        assert (books.account.spent_nusd, books.account.reserved_nusd) == (70_000, 0)

    asyncio.run(scenario())


def test_a_stream_that_its_client_drops_is_charged_to_the_month_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = {"artefact": one_model(), "keys": keys_for("team", monthly_budget_usd=100 * TURN_USD)}
        async with api_over(tmp_path, stalled("one"), **settings) as api:
            api.headers["authorization"] = f"Bearer {TURN_KEY}"
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 16}
            response = await api.http.post(f"{api.base_url}/v1/chat/completions", json=body, headers=api.headers)
            await response.content.readany()
            response.close()
            session = await api.settled()
            route = {"messages": body["messages"], "max_tokens": 10**6}
            later = await api.call("POST", "/v1/route", route, x_session_id="new", x_session_budget_usd="1")
        left_usd = 100 * TURN_USD - session["spent_usd"]
        assert session["spent_usd"] == 10_000 / 1e9  # three bytes are one token
        assert later.body["reserve_usd"] == pytest.approx(left_usd, abs=10_001 / 1e9)
        assert later.body["reserve_usd"] <= left_usd

    asyncio.run(scenario())


def test_a_raised_monthly_budget_holds_from_the_next_turn_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        poor = Caller(id="team", monthly_budget_nusd=100)
        async with service_over(tmp_path, answered(), artefact=one_model()) as (service, _):
            with pytest.raises(RequestError, match="monthly budget"):
                await answer(service, ask_for(caller=poor))
            richer = replace(poor, monthly_budget_nusd=10**6)
            result = await answer(service, ask_for(caller=richer, decision_id="dec_2"))
        assert result["seqroute"]["cost_usd"] == 70_000 / 1e9

    asyncio.run(scenario())


def test_a_key_without_a_monthly_budget_has_no_month(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            await answer(service, ask_for())
            purse = Purse(service.ledger, await account_of(service), month_of("local", None), lease_s=1)
            assert await purse.month_left_nusd() is None

    asyncio.run(scenario())


def test_a_monthly_budget_of_one_key_is_not_anothers() -> None:
    mine, theirs = month_of("a", 1), month_of("b", 1)
    assert mine is not None
    assert theirs is not None
    assert mine.account_id != theirs.account_id


class LosesAnswers:
    """A ledger that makes a reservation and whose connection then breaks, at the n-th one."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger, self._left = ledger, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def reserve(self, *arguments: Any) -> Account:
        account = await self._ledger.reserve(*arguments)
        self._left -= 1
        if self._left == 0:
            raise LedgerUnavailable("the connection broke")
        return account


@pytest.mark.parametrize("number", [1, 2], ids=["of_the_session", "of_the_month"])
def test_a_reservation_that_was_made_but_not_confirmed_is_given_back(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "RETRY_S", 0.01)
    caller = Caller(id="team", monthly_budget_nusd=10**9)

    async def scenario() -> None:
        async with service_over(tmp_path, answered(), answered(), artefact=one_model()) as (service, provider):
            books = service.ledger
            service.ledger = LosesAnswers(books, number)
            with pytest.raises(LedgerUnavailable):
                await answer(service, ask_for(caller=caller))
            held = [await account_of(service, owner="team"), await books.account(month_of("team", 1).account_id)]  # type: ignore[union-attr]
            assert held[0].reserved_nusd > 0
            async with asyncio.timeout(10):
                while any(account.reserved_nusd for account in held):
                    await asyncio.sleep(0.01)
                    held = [await books.account(account.session_id) for account in held]
            assert [account.spent_nusd for account in held] == [0, 0]
            assert provider.bodies == []
            await answer(service, ask_for(caller=caller, decision_id="dec_2"))

    asyncio.run(scenario())
