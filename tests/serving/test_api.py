"""The API over real HTTP; the provider is the replay upstream, over real HTTP too."""

from collections.abc import Iterator
from pathlib import Path

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


def test_health_names_policy_and_models(client: Client) -> None:
    reply = client.get("/healthz")
    assert reply.status == 200
    assert reply.body["models"] == list(trio().names)
    assert len(reply.body["policy_version"]) == 12


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
            assert float(reply.headers["x-seqroute-cost-usd"]) == seqroute["cost_usd"]
            assert float(reply.headers["x-seqroute-remaining-usd"]) == seqroute["remaining_usd"]
    assert statuses[0] == 200
    session = client.get(f"/v1/sessions/{client.headers['x-session-id']}").body
    assert session["num_turns"] == statuses.count(200)
    assert session["spent_usd"] == pytest.approx(spent_usd, abs=1e-12)
    assert (session["reserved_usd"], session["overshoot_usd"]) == (0, 0)


def test_an_exhausted_session_says_what_is_left_and_a_raised_budget_resumes_it(client: Client) -> None:
    client = client.with_headers(x_session_budget_usd="0.000001")
    reply = client.chat(QUESTIONS[0])
    assert reply.status == 402
    error = reply.body["error"]
    assert error["code"] == "budget_exhausted"
    assert (error["spent_usd"], error["reserved_usd"], error["remaining_usd"]) == (0, 0, 0.000001)
    path = f"/v1/sessions/{client.headers['x-session-id']}"
    assert path.rsplit("/", 1)[0] in error["hint"]
    assert client.patch(path, {"budget_usd": 0.01}).body["remaining_usd"] == 0.01
    assert client.with_headers(x_session_budget_usd="0.01").chat(QUESTIONS[0]).status == 200
    assert client.patch(path, {"budget_usd": 0.001}).status == 400


def test_a_decision_alone_opens_and_charges_nothing(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    reply = client.post("/v1/route", body)
    assert reply.status == 200
    assert set(reply.body["q_values"]) == set(trio().names)
    assert client.get(f"/v1/sessions/{client.headers['x-session-id']}").status == 404
    assert client.chat(QUESTIONS[0]).body["seqroute"]["decision"] == reply.body  # the same turn, now paid


def test_lambda_of_the_request_acts(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    thrifty = client.with_headers(x_lambda="1e9").post("/v1/route", body).body
    assert thrifty["lambda_per_usd"] == 1e9
    assert thrifty["model"] == min(thrifty["predicted_cost_usd"], key=thrifty["predicted_cost_usd"].get)


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


def test_a_session_needs_a_name_and_a_budget(client: Client, server: str) -> None:
    unnamed = Client(server, {}).chat(QUESTIONS[0])
    assert unnamed.status == 400
    assert "x-session-id is required" in unnamed.body["error"]["message"]
    unpaid = Client(server, {"x-session-id": "unpaid"}).chat(QUESTIONS[0])
    assert unpaid.status == 400
    assert "x-session-budget-usd" in unpaid.body["error"]["message"]
    assert client.chat(QUESTIONS[0]).status == 200
    later = Client(server, {"x-session-id": client.headers["x-session-id"]})  # an open session needs no budget
    assert later.chat(QUESTIONS[1]).status == 200
    assert client.with_headers(x_session_budget_usd="0.03").chat(QUESTIONS[1]).status == 409


def test_mistakes_are_openai_errors(client: Client) -> None:
    for reply, status in [
        (client.chat("hi", stream=True), 400),
        (client.chat("hi", n=2), 400),
        (client.post("/v1/chat/completions", ["hi"]), 400),
        (client.with_headers(x_lambda="-1").chat("hi"), 400),
        (client.get("/v1/sessions/nobody"), 404),
        (client.get("/v1/nothing"), 404),
        (client.get("/v1/route"), 405),
        (client.patch("/v1/sessions/nobody", {"budget_usd": 1}), 404),
        (client.patch("/v1/sessions/nobody", {"budget": 1}), 400),
    ]:
        assert reply.status == status
        assert {"message", "type", "code"} <= set(reply.body["error"])


def test_openais_own_client_works(server: str) -> None:
    openai = pytest.importorskip("openai")
    headers = {"x-session-id": "openai", "x-session-budget-usd": "0.01"}
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", default_headers=headers) as client:
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        answer = client.chat.completions.create(model="auto", messages=messages, max_tokens=40, temperature=0)
        assert answer.choices[0].message.content.startswith("Replay of ")
        assert answer.usage.completion_tokens <= 40
        assert answer.seqroute["decision"]["max_tokens"] == 40
        with pytest.raises(openai.BadRequestError, match="stream must be false"):
            client.chat.completions.create(model="auto", messages=messages, stream=True)


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
    with running_api(load_config(write_settings(tmp_path, fields))) as base_url:
        client = Client(base_url, {"x-session-id": "s", "x-session-budget-usd": "0.01"})
        reply = client.chat(QUESTIONS[0])
        session = client.get("/v1/sessions/s").body
    assert reply.status == 502
    assert (reply.body["error"]["code"], reply.body["error"]["charged"]) == ("upstream_error", False)
    assert (session["spent_usd"], session["reserved_usd"], session["num_turns"]) == (0, 0, 0)
