"""Two API keys on one server: neither can read, spend, raise, close, score or guess what is the other's."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from .service_support import Api, answered, api_over
from .support import QUESTIONS, Reply

MESSAGES = [{"role": "user", "content": QUESTIONS[0]}]
CHAT = {"messages": MESSAGES, "max_tokens": 20}
BUDGET = {"x_session_budget_usd": "0.01"}


def key(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **fields}


@asynccontextmanager
async def server(folder: Path, *keys: dict[str, Any], **changes: Any) -> AsyncIterator[Api]:
    async with api_over(folder, answered(), keys=list(keys), **changes) as api:
        api.headers.clear()
        yield api


async def call(api: Api, name: str, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    return await api.call(method, path, body, authorization=f"Bearer sk-{name}", **headers)


def error(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body["error"]["code"]


NAMES = ["s", "alice:s", "alice%3As", "%61lice:s", "..", "../alice:s", "month/2026-11/alice"]


def test_a_key_reads_raises_and_closes_only_its_own_sessions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice"), key("bob")) as api:
            await call(api, "alice", "POST", "/v1/chat/completions", CHAT, x_session_id="s", **BUDGET)
            before = (await call(api, "alice", "GET", "/v1/sessions/s")).body
            for name in NAMES:
                for method in ("GET", "DELETE"):
                    reply = await call(api, "bob", method, f"/v1/sessions/{name}")
                    assert reply.status in (400, 404), (method, name, reply.body)
            for name in NAMES:
                raised = await call(api, "bob", "PUT", f"/v1/sessions/{name}", {"budget_usd": 5})
                assert raised.body.get("num_turns", 0) == 0  # a session of bob's own
            assert (await call(api, "alice", "GET", "/v1/sessions/s")).body == before
        assert before["num_turns"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_key_spends_only_its_own_sessions_money(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice"), key("bob")) as api:
            await call(api, "alice", "PUT", "/v1/sessions/s", {"budget_usd": 0.01})
            unpaid = await call(api, "bob", "POST", "/v1/chat/completions", CHAT, x_session_id=name)
            in_body = await call(api, "bob", "POST", "/v1/chat/completions", {**CHAT, "session_id": name})
            paid = await call(api, "bob", "POST", "/v1/chat/completions", CHAT, x_session_id=name, **BUDGET)
            session = (await call(api, "alice", "GET", "/v1/sessions/s")).body
        assert error(unpaid) == error(in_body) == (400, "budget_required")
        assert (paid.status, paid.body["seqroute"]["turn"]) == (200, 0)
        assert (session["spent_usd"], session["num_turns"]) == (0, 0)

    asyncio.run(scenario())


def test_sessions_that_begin_alike_are_each_keys_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice"), key("bob")) as api:
            replies = [
                await call(api, name, "POST", "/v1/chat/completions", CHAT, **BUDGET)
                for name in ("alice", "bob", "alice")
            ]
        assert [reply.body["seqroute"]["turn"] for reply in replies] == [0, 0, 1]

    asyncio.run(scenario())


def test_no_key_can_be_named_so_that_its_sessions_are_anothers_month(tmp_path: Path) -> None:
    async def scenario() -> None:
        month = time.strftime("%Y-%m", time.gmtime())
        keys = (key("alice", monthly_budget_usd=0.0001), key("month"))
        async with server(tmp_path, *keys) as api:
            await call(api, "alice", "POST", "/v1/chat/completions", CHAT, **BUDGET)
            stolen = await call(api, "month", "GET", f"/v1/sessions/{month}:alice")
            opened = await call(api, "month", "PUT", f"/v1/sessions/{month}:alice", {"budget_usd": 5})
            asked = {**CHAT, "max_tokens": 100_000}
            later = await call(api, "alice", "POST", "/v1/route", asked, x_session_id="t", x_session_budget_usd="1")
        assert error(stolen) == (404, "session_not_found")
        assert opened.body["spent_usd"] == 0
        assert later.body["reserve_usd"] <= 0.0001

    asyncio.run(scenario())


def test_a_key_neither_reads_nor_scores_anothers_decisions_and_sessions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice"), key("bob")) as api:
            turn = await call(api, "alice", "POST", "/v1/chat/completions", CHAT, x_session_id="s", **BUDGET)
            decision_id = turn.headers["x-seqroute-decision"]
            path = f"/v1/decisions/{decision_id}"
            mine, theirs = await call(api, "alice", "GET", path), await call(api, "bob", "GET", path)
            unknown = await call(api, "bob", "GET", "/v1/decisions/dec_0")
            targets = [
                {"decision_id": decision_id},
                {"decision_id": "alice:s"},
                {"decision_id": "dec_0"},
                {"session_id": "s"},
                {"session_id": "alice:s"},
            ]
            scored = [await call(api, "bob", "POST", "/v1/feedback", {**target, "score": 0}) for target in targets]
            after = await call(api, "alice", "GET", path)
            own = await call(api, "alice", "POST", "/v1/feedback", {"decision_id": decision_id, "score": 1})
            own_session = await call(api, "alice", "POST", "/v1/feedback", {"session_id": "s", "score": 1})
        assert mine.status == own.status == own_session.status == 200
        assert error(theirs) == error(unknown) == (404, "decision_not_found")
        assert [error(reply) for reply in scored[:3]] == [(404, "decision_not_found")] * 3
        assert [error(reply) for reply in scored[3:]] == [(404, "session_not_found")] * 2
        assert after.body == mine.body
        assert after.body["feedback"] == []

    asyncio.run(scenario())


def test_an_idempotency_key_is_its_owners(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice"), key("bob")) as api:
            headers = {"x_session_id": "s", "idempotency_key": "k", **BUDGET}
            replies = [
                await call(api, name, "POST", "/v1/chat/completions", CHAT, **headers) for name in ("alice", "bob")
            ]
        assert ["x-seqroute-replayed" in reply.headers for reply in replies] == [False, False]
        assert len(api.provider.bodies) == 2

    asyncio.run(scenario())


ROUTES = [
    ("route", "POST", "/v1/chat/completions", CHAT),
    ("route", "POST", "/v1/messages", {**CHAT, "model": "seqroute"}),
    ("route", "POST", "/v1/route", CHAT),
    ("route", "GET", "/v1/models", None),
    ("sessions", "GET", "/v1/sessions/s", None),
    ("sessions", "PUT", "/v1/sessions/s", {"budget_usd": 1}),
    ("sessions", "DELETE", "/v1/sessions/s", None),
    ("sessions", "GET", "/v1/decisions/dec_0", None),
    ("sessions", "POST", "/v1/feedback", {"session_id": "s", "score": 1}),
    ("admin", "GET", "/metrics", None),
]


def test_a_scope_opens_its_routes_and_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        scopes = ("route", "sessions", "admin")
        keys = [key(scope, scopes=[scope]) for scope in scopes]
        async with server(tmp_path, *keys) as api:
            for needed, method, path, body in ROUTES:
                for scope in scopes:
                    reply = await call(api, scope, method, path, body, **BUDGET)
                    if scope == needed:
                        assert reply.status in (200, 404), (path, reply.body)
                    else:
                        assert error(reply) == (403, "scope_missing"), (path, scope)
                for headers in ({}, {"authorization": "Bearer sk-nobody"}, {"x_api_key": "sk-nobody"}):
                    reply = await api.call(method, path, body, **headers)
                    assert error(reply) == (401, "invalid_api_key" if headers else "missing_api_key"), path
                    assert reply.headers["www-authenticate"] == "Bearer"
            assert (await api.call("GET", "/healthz")).status == (await api.call("GET", "/readyz")).status == 200

    asyncio.run(scenario())


def test_a_key_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path, key("alice", requests_per_minute=3), key("bob")) as api:
            replies = [await call(api, "alice", "GET", "/v1/models") for _ in range(4)]
            other = await call(api, "bob", "GET", "/v1/models")
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert error(replies[-1]) == (429, "rate_limit_exceeded")
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 20
        assert other.status == 200

    asyncio.run(scenario())


def test_what_a_key_may_not_do_with_budgets(tmp_path: Path) -> None:
    async def scenario() -> None:
        fixed = key("fixed", may_set_budget=False, may_raise_budget=False, default_session_budget_usd=0.002)
        async with server(tmp_path, fixed, key("rising", may_raise_budget=False)) as api:
            turn = await call(api, "fixed", "POST", "/v1/chat/completions", CHAT, x_session_id="s")
            by_header = await call(api, "fixed", "POST", "/v1/route", CHAT, x_session_id="t", **BUDGET)
            by_put = await call(api, "fixed", "PUT", "/v1/sessions/t", {"budget_usd": 5})
            raised = await call(api, "fixed", "PUT", "/v1/sessions/s", {"budget_usd": 5})
            opened = await call(api, "rising", "PUT", "/v1/sessions/s", {"budget_usd": 0.01})
            again = await call(api, "rising", "PUT", "/v1/sessions/s", {"budget_usd": 0.01})
            more = await call(api, "rising", "PUT", "/v1/sessions/s", {"budget_usd": 0.02})
        assert turn.body["seqroute"]["budget_usd"] == 0.002
        assert {error(reply) for reply in (by_header, by_put, raised, more)} == {(403, "budget_not_allowed")}
        assert opened.status == again.status == 200

    asyncio.run(scenario())


def test_a_keys_defaults_hold_where_its_requests_say_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        thrifty = key("thrifty", default_lambda_per_usd=1e9, max_turn_usd=0.0005, default_session_budget_usd=1)
        async with server(tmp_path, thrifty, default_lambda_per_usd=2.0) as api:
            plain = (await call(api, "thrifty", "POST", "/v1/route", {"messages": MESSAGES})).body
            asked = await call(
                api, "thrifty", "POST", "/v1/route", {"messages": MESSAGES}, x_lambda="3", x_max_turn_usd="0.5"
            )
        assert (plain["lambda_per_usd"], plain["reserve_usd"] <= 0.0005) == (1e9, True)
        assert (asked.body["lambda_per_usd"], asked.body["degraded"]) == (3, [])

    asyncio.run(scenario())
