"""The API over real HTTP; the provider is the replay upstream, over real HTTP too."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.serving.config import load_config

from .support import QUESTIONS, TYPES, Client, random_artefact, running_api, settings, spec, trio, write_settings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("api")
    fields = settings(folder, random_artefact(trio()), upstream_url)
    with running_api(load_config(write_settings(folder, fields))) as base_url:
        yield base_url


@pytest.fixture
def client(server: str, request: pytest.FixtureRequest) -> Client:
    """A new session of 0.02 USD for each test."""
    return Client(server, {"x-session-id": request.node.name, "x-session-budget-usd": "0.02"})


def session_path(client: Client) -> str:
    return f"/v1/sessions/{client.headers['x-session-id']}"


def test_health_names_policy_and_models(client: Client) -> None:
    reply = client.get("/healthz")
    assert reply.status == 200
    assert reply.body["models"] == list(trio().names)
    assert len(reply.body["policy_version"]) == 12
    assert reply.body["policies"] == [reply.body["policy_version"]]


def test_the_router_and_its_pool_are_listed_as_models(client: Client) -> None:
    rows = client.get("/v1/models").body["data"]
    assert [row["id"] for row in rows] == ["seqroute", *trio().names]


def test_six_turns_never_spend_more_than_the_budget(client: Client) -> None:
    client = client.with_headers(x_session_budget_usd="0.004")
    spent_usd, statuses = 0.0, []
    for question in QUESTIONS:
        reply = client.chat(question)
        statuses.append(reply.status)
        if reply.status == 200:
            seqroute = reply.body["seqroute"]
            spent_usd += seqroute["cost_usd"]
            assert seqroute["turn"] == statuses.count(200) - 1
            assert seqroute["spent_usd"] == pytest.approx(spent_usd, abs=1e-12)
            assert seqroute["spent_usd"] + seqroute["reserved_usd"] <= 0.004
            assert seqroute["cost_usd"] <= seqroute["decision"]["reserve_usd"]
            assert reply.headers["x-seqroute-model"] == seqroute["decision"]["model"] == reply.body["model"]
            assert reply.headers["x-seqroute-decision"] == seqroute["decision_id"]
            assert float(reply.headers["x-seqroute-cost-usd"]) == seqroute["cost_usd"]
            assert float(reply.headers["x-seqroute-remaining-usd"]) == seqroute["remaining_usd"]
    assert statuses[0] == 200
    session = client.get(session_path(client)).body
    assert session["num_turns"] == statuses.count(200)
    assert session["spent_usd"] == pytest.approx(spent_usd, abs=1e-12)
    assert (session["reserved_usd"], session["overshoot_usd"]) == (0, 0)


def test_an_exhausted_session_says_what_is_left_and_a_raised_budget_resumes_it(client: Client) -> None:
    client = client.with_headers(x_session_budget_usd="0.000001")
    reply = client.chat(QUESTIONS[0])
    assert reply.status == 402
    error = reply.body["error"]
    assert (error["code"], error["type"]) == ("budget_exhausted", "budget_error")
    assert (error["spent_usd"], error["reserved_usd"], error["remaining_usd"]) == (0, 0, 0.000001)
    assert error["message"].startswith(f"session {session_path(client).rsplit('/', 1)[1]!r} cannot reserve $0.0000")
    assert "PUT /v1/sessions/{id}" in error["hint"]
    assert reply.headers["x-should-retry"] == "false"
    assert client.put(session_path(client), {"budget_usd": 0.01}).body["remaining_usd"] == 0.01
    assert client.with_headers(x_session_budget_usd="0.01").chat(QUESTIONS[0]).status == 200
    lowered = client.put(session_path(client), {"budget_usd": 0.001})
    assert (lowered.status, lowered.body["error"]["code"]) == (409, "budget_conflict")


def test_the_ladder_as_a_client_sees_it(tmp_path: Path, upstream_url: str) -> None:
    # Named as the replay knows them; the policy likes the dear one best.
    pool = (spec("gemini-1.5-flash", 0.15, 0.6), spec("gpt-4o-2024-08-06", 2.5, 10.0), spec("gemma-2-2b-it", 0.0, 0.0))
    paid = random_artefact(Catalog(pool[:2]), typical_cost_usd=0.001, seed=3)
    folders = [tmp_path / name for name in ("paid", "free")]
    for folder in folders:
        folder.mkdir()
    fields = settings(folders[0], paid, upstream_url)
    with running_api(load_config(write_settings(folders[0], fields))) as base_url:
        seen = []
        for number, budget_usd in enumerate(("0.1", "0.00009", "0.00002", "0.000001")):
            client = Client(base_url, {"x-session-id": str(number), "x-session-budget-usd": budget_usd})
            reply = client.chat(QUESTIONS[0], max_tokens=50)
            decision = reply.body["seqroute"]["decision"] if reply.status == 200 else {"model": None, "degraded": None}
            seen.append((reply.status, decision["model"], decision["degraded"]))
    assert seen == [
        (200, "gpt-4o-2024-08-06", []),
        (200, "gemini-1.5-flash", ["cheaper_model"]),
        (200, "gemini-1.5-flash", ["cheaper_model", "shorter_answer"]),
        (402, None, None),
    ]
    fields = settings(folders[1], random_artefact(Catalog(pool)), upstream_url)
    with running_api(load_config(write_settings(folders[1], fields))) as base_url:
        client = Client(base_url, {"x-session-id": "s", "x-session-budget-usd": "0.000001"})
        replies = [client.chat(QUESTIONS[0], max_tokens=50) for _ in range(3)]
    for reply in replies:  # a free model is never blocked
        assert (reply.status, reply.body["model"], reply.body["seqroute"]["cost_usd"]) == (200, "gemma-2-2b-it", 0)


def test_a_decision_alone_opens_and_charges_nothing(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    reply = client.post("/v1/route", body)
    assert reply.status == 200
    assert set(reply.body["q_values"]) == set(trio().names)
    assert client.get(session_path(client)).status == 404
    assert client.chat(QUESTIONS[0]).body["seqroute"]["decision"] == reply.body  # the same turn, now paid


def test_a_decision_is_kept_and_scored(client: Client) -> None:
    reply = client.chat(QUESTIONS[0])
    decision_id = reply.headers["x-seqroute-decision"]
    record = client.get(f"/v1/decisions/{decision_id}").body
    decision = reply.body["seqroute"]["decision"]
    assert {name: record[name] for name in decision} == decision
    assert record["cost_nusd"] == round(reply.body["seqroute"]["cost_usd"] * 1e9)
    for judge, score in (("user", 0.2), ("judge", 0.9), ("user", 1)):
        stored = client.post("/v1/feedback", {"decision_id": decision_id, "score": score, "judge": judge})
        assert (stored.status, stored.body) == (200, {"stored": True, "judge": judge, "score": score})
    feedback = client.get(f"/v1/decisions/{decision_id}").body["feedback"]
    assert {each["judge"]: each["score"] for each in feedback} == {"user": 1, "judge": 0.9}
    session = client.post("/v1/feedback", {"session_id": client.headers["x-session-id"], "score": 0.5})
    assert session.body == {"stored": True, "judge": "user", "score": 0.5}


def test_lambda_of_the_request_acts(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    thrifty = client.with_headers(x_lambda="1e9").post("/v1/route", body).body
    assert thrifty["lambda_per_usd"] == 1e9
    assert thrifty["model"] == min(thrifty["predicted_cost_usd"], key=thrifty["predicted_cost_usd"].get)


def test_a_limit_of_the_turn_acts_and_its_refusal_names_it(client: Client) -> None:
    reply = client.with_headers(x_max_turn_usd="0.0001").chat(QUESTIONS[0])
    assert reply.status == 200
    assert reply.body["seqroute"]["cost_usd"] <= reply.body["seqroute"]["decision"]["reserve_usd"] <= 0.0001
    refused = client.with_headers(x_max_turn_usd="0.000001").chat(QUESTIONS[0])
    assert refused.status == 402
    error = refused.body["error"]
    assert (error["code"], error["turn_limit_usd"], error["scope"]) == ("budget_exhausted", 0.000001, "turn")
    assert "x-max-turn-usd" in error["hint"]
    assert error["remaining_usd"] > 0.01
    assert "x-max-turn-usd" in error["message"]


def test_the_named_type_of_task_reaches_the_decision(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    prose, sums = (client.with_headers(x_task_type=name).post("/v1/route", body).body for name in TYPES)
    for model, cost_usd in sums["predicted_cost_usd"].items():
        assert cost_usd > 2 * prose["predicted_cost_usd"][model]
    paid = client.with_headers(x_task_type="sums").chat(QUESTIONS[0])
    assert paid.body["seqroute"]["decision"] == sums


def test_an_unknown_type_of_task_is_inferred_as_if_none_were_named(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    unnamed, unknown, named = (
        asking.post("/v1/route", body)
        for asking in (client, client.with_headers(x_task_type="verse"), client.with_headers(x_task_type="sums"))
    )
    assert unnamed.status == 200
    assert unnamed.body == unknown.body != named.body


def test_a_session_needs_a_budget_and_keeps_it(client: Client, server: str) -> None:
    unpaid = Client(server, {"x-session-id": "unpaid"}).chat(QUESTIONS[0])
    assert (unpaid.status, unpaid.body["error"]["code"]) == (400, "budget_required")
    assert "x-session-budget-usd" in unpaid.body["error"]["message"]
    assert client.chat(QUESTIONS[0]).status == 200
    later = Client(server, {"x-session-id": client.headers["x-session-id"]})  # an open session needs no budget
    assert later.chat(QUESTIONS[1]).status == 200
    other = client.with_headers(x_session_budget_usd="0.03").chat(QUESTIONS[1])
    assert (other.status, other.body["error"]["code"]) == (409, "budget_conflict")


def test_a_session_that_is_not_named_is_recognised_by_its_opening(server: str) -> None:
    client = Client(server, {"x-session-budget-usd": "0.02"})
    first = client.chat("an opening of its own")
    again = client.chat("an opening of its own")
    other = client.chat("another opening")
    names = [reply.headers["x-seqroute-session"] for reply in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert first.body["seqroute"]["session_from"] == "fingerprint"
    named = Client(server, {"x-session-id": names[0]})
    assert named.chat("a second turn").body["seqroute"]["turn"] == 2


@pytest.mark.parametrize("name", ["日本", "é", "a b%20c"])
def test_a_session_of_any_printable_name_has_an_answer_and_headers(client: Client, server: str, name: str) -> None:
    reply = Client(server, {"x-session-budget-usd": "0.02"}).chat(QUESTIONS[0], session_id=name)
    assert reply.status == 200
    assert reply.body["seqroute"]["session_id"] == name
    assert reply.headers["x-seqroute-session"].isascii()
    assert client.get(f"/v1/sessions/{quote(name, safe='')}").body["num_turns"] == 1


def test_a_closed_session_takes_no_more_turns_and_keeps_its_books(client: Client) -> None:
    cost_usd = client.chat(QUESTIONS[0]).body["seqroute"]["cost_usd"]
    closed = client.delete(session_path(client))
    assert (closed.status, closed.body["closed"], closed.body["spent_usd"]) == (200, True, cost_usd)
    refused = client.chat(QUESTIONS[0])
    assert (refused.status, refused.body["error"]["code"]) == (409, "session_closed")
    assert client.post("/v1/route", {"messages": [{"role": "user", "content": "hi"}]}).status == 409
    assert client.get(session_path(client)).body["closed"]
    assert client.delete("/v1/sessions/nobody").status == 404


def test_a_session_can_be_opened_before_its_first_turn(client: Client, server: str) -> None:
    opened = client.put(session_path(client), {"budget_usd": 0.005})
    assert (opened.status, opened.body["budget_usd"], opened.body["num_turns"]) == (200, 0.005, 0)
    unnamed = Client(server, {"x-session-id": client.headers["x-session-id"]})
    assert unnamed.chat(QUESTIONS[0]).body["seqroute"]["budget_usd"] == 0.005


def test_of_200_parallel_turns_on_room_for_20_exactly_20_are_answered(tmp_path: Path, upstream_url: str) -> None:
    # Free input and an answer cut at 16 tokens: every turn reserves, and costs, exactly 16 x 10,000 nano-dollars.
    pool = Catalog((spec("gpt-4o-2024-08-06", 0.0, 10.0),))
    fields = {**settings(tmp_path, random_artefact(pool), upstream_url), "default_budget_usd": 20 * 16 * 10 / 1e6}
    with running_api(load_config(write_settings(tmp_path, fields))) as base_url:
        client = Client(base_url, {"x-session-id": "crowd"})
        replies = client.chats([QUESTIONS[0]] * 200, max_tokens=16)
        session = client.get("/v1/sessions/crowd").body
    statuses = [reply.status for reply in replies]
    assert (statuses.count(200), statuses.count(402)) == (20, 180)
    answered_usd = sum(reply.body["seqroute"]["cost_usd"] for reply in replies if reply.status == 200)
    assert session["spent_usd"] == pytest.approx(answered_usd, abs=1e-12) == pytest.approx(0.0032, abs=1e-12)
    assert (session["reserved_usd"], session["remaining_usd"], session["num_turns"]) == (0, 0, 20)


def test_an_upstream_that_is_down_is_a_502_and_costs_nothing(tmp_path: Path) -> None:
    fields = settings(tmp_path, random_artefact(trio()), "http://127.0.0.1:9/v1")
    with running_api(load_config(write_settings(tmp_path, {**fields, "retries": 0}))) as base_url:
        client = Client(base_url, {"x-session-id": "s", "x-session-budget-usd": "0.01"})
        reply = client.chat(QUESTIONS[0])
        session = client.get("/v1/sessions/s").body
    assert reply.status == 502
    assert (reply.body["error"]["code"], reply.body["error"]["charged"]) == ("upstream_connect", False)
    assert (session["spent_usd"], session["reserved_usd"], session["num_turns"]) == (0, 0, 0)
