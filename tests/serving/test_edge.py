"""What every request passes: limits, request ids, the access log, and a log that never holds what must not leak."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from seqroute_ray.serving.edge import Edge, access_logger, headers_of
from seqroute_ray.serving.errors import add_error_handlers, refusal
from seqroute_ray.serving.metrics import Metrics, PrometheusBackend
from seqroute_ray.serving.shortcut import Shortcut

from .service_support import TURN_KEY, Api, answered, api_over, keys_for, refused, stalled, streamed
from .support import QUESTIONS

CANARY = "canary-7f3a"
MESSAGES = [{"role": "user", "content": QUESTIONS[0]}]


def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered(), max_body_bytes=2000) as api:
            fits, large = await api.chat("x" * 1500), await api.chat("x" * 2500)

            async def endless() -> Any:
                for _ in range(1000):
                    yield b"x" * 100

            url = f"{api.base_url}/v1/messages"
            async with api.http.post(url, data=endless(), headers=api.headers) as chunked:
                status, body = chunked.status, await chunked.json()
        assert fits.status == 200
        assert (large.status, large.body["error"]["code"]) == (413, "body_too_large")
        assert (status, body["type"], body["error"]["code"]) == (413, "error", "body_too_large")

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_headers_that_are_too_large_are_refused_in_the_apis_own_schema(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered(), max_header_bytes=2000) as api:
            reply = await api.call("POST", path, {}, x_filler="x" * 3000)
        assert (reply.status, reply.body["error"]["code"]) == (431, "headers_too_large")
        assert ("type" in reply.body) == (path == "/v1/messages")
        assert reply.headers["x-should-retry"] == "false"
        assert reply.headers["x-request-id"]

    asyncio.run(scenario())


def test_every_answer_has_a_request_id_the_clients_if_it_is_harmless(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with api_over(tmp_path, answered(), streamed("yes")) as api:
            replies = [
                await api.chat(headers={"x_request_id": "mine:1"}),
                await api.chat(stream=True, headers={"x_request_id": "mine:2"}),
                await api.call("GET", "/v1/nothing", x_request_id="mine:3"),
                await api.call("GET", "/healthz", x_request_id="not harmless"),
                await api.call("GET", "/healthz"),
            ]
        ids = [reply.headers["x-request-id"] for reply in replies]
        assert ids[:3] == ["mine:1", "mine:2", "mine:3"]
        assert all(re.fullmatch("[0-9a-f]{32}", name) for name in ids[3:])
        assert len(set(ids)) == 5

    asyncio.run(scenario())


def test_the_access_log_is_a_line_of_json_a_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, access_logger.name)

    async def scenario() -> Any:
        async with api_over(tmp_path, answered(), streamed("yes")) as api:
            reply = await api.chat(headers={"x_request_id": "r1"})
            await api.chat(stream=True, headers={"x_request_id": "r2"})
            await api.call("GET", "/v1/sessions/s", x_request_id="r3")
            await api.call("GET", f"/v1/sessions/{CANARY}", x_request_id="r4")
            await api.call("GET", f"/{CANARY}", x_request_id="r5")
            return reply

    reply = asyncio.run(scenario())
    lines = {
        line["request_id"]: line
        for record in caplog.records
        if record.name == access_logger.name
        for line in [json.loads(record.getMessage())]
    }
    assert [lines[name]["status"] for name in ("r1", "r2", "r3", "r4", "r5")] == [200, 200, 200, 404, 404]
    assert (lines["r1"]["method"], lines["r1"]["route"], lines["r1"]["key"]) == (
        "POST",
        "/v1/chat/completions",
        "local",
    )
    assert lines["r1"]["decision"] == reply.headers["x-seqroute-decision"]
    assert lines["r1"]["model"] == lines["r2"]["model"] == reply.headers["x-seqroute-model"]
    assert lines["r1"]["cost_usd"] == reply.headers["x-seqroute-cost-usd"]
    assert lines["r1"]["session"] == lines["r2"]["session"]
    assert lines["r2"]["stream"] is True
    assert lines["r3"]["route"] == "/v1/sessions/{session_id:path}"
    assert lines["r5"]["route"] == "(none)"
    assert all(0 <= line["seconds"] < 30 for line in lines.values())


def test_nothing_that_is_logged_holds_a_prompt_an_answer_a_key_or_a_sessions_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loggers of the process, from DEBUG on, over good, bad, broken, dropped and failed requests."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SEQROUTE_TEST_KEY", f"{CANARY}-of-the-provider")
    secrets: dict[str, Any] = {
        "session_id": f"{CANARY}-session",
        "user": f"{CANARY}-user",
        "metadata": {"note": CANARY},
    }
    tool = {"type": "function", "function": {"name": f"{CANARY}-tool", "parameters": {"description": CANARY}}}

    async def chats(api: Api) -> None:
        say = f"{CANARY} in a question"
        await api.chat(say, tools=[tool], **secrets)
        await api.chat(say, headers={"x_session_id": f"{CANARY}-named", "idempotency_key": f"{CANARY}-idempotent"})
        await api.chat(say, model=CANARY)  # unknown model: 404
        await api.chat(say, temperature=CANARY)  # 400
        await api.chat(say, n=CANARY)
        await api.call("POST", "/v1/chat/completions", {"messages": [{"role": CANARY, "content": CANARY}]})
        await api.call("POST", "/v1/messages", {"model": "seqroute", "messages": [{"role": "user", "content": say}]})
        await api.call("GET", f"/v1/decisions/{CANARY}")
        await api.call("POST", "/v1/feedback", {"session_id": CANARY, "score": 2})
        await api.chat(say, headers={"x_session_budget_usd": CANARY})
        await api.chat(say, headers={"authorization": f"Bearer {CANARY}-unknown"})
        await api.chat(say, headers={"x_session_id": f"{CANARY}-poor", "x_session_budget_usd": "0.000001"})

    async def scenario() -> None:
        settings = {"keys": keys_for("team"), "upstream": {"api_key_env": "SEQROUTE_TEST_KEY"}}
        said = f"{CANARY} in an answer"
        async with api_over(tmp_path, answered(said), **settings) as api:
            api.headers["authorization"] = f"Bearer {TURN_KEY}"
            await chats(api)
        failing = (refused(400, said), refused(500, said), refused(401, said), stalled(said))
        async with api_over(tmp_path, *failing, retries=0, **settings) as api:
            api.headers["authorization"] = f"Bearer {TURN_KEY}"
            for _ in range(2):
                await api.chat(f"{CANARY} again", model="gpt-4o-2024-08-06", **secrets)
            body = {"messages": MESSAGES, "stream": True, "user": CANARY, "model": "llama-3.1-8b-instruct"}
            await api.chat(f"{CANARY} again", model="llama-3.1-8b-instruct")
            response = await api.http.post(f"{api.base_url}/v1/chat/completions", json=body, headers=api.headers)
            await response.content.readany()
            response.close()
            await asyncio.wait_for(api.provider.hung_up.wait(), 10)

    asyncio.run(scenario())
    records = [logging.Formatter().format(record) + repr(record.args) for record in caplog.records]
    assert len([line for line in records if "upstream_failed" in line]) >= 3
    assert any("client_dropped" in line for line in records)
    leaks = [line for line in records if CANARY in line or TURN_KEY in line]
    assert leaks == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])  # past FastAPI, and by it
def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with api_over(tmp_path, answered()) as api:
            host, port = api.base_url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\nx-request-id: gone\r\ncontent-length: 99\r\n"
            writer.write(f"{head}\r\n{{".encode())
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            async with asyncio.timeout(10):
                while not any('"gone"' in record.getMessage() for record in caplog.records):
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if '"gone"' in record.getMessage()]
    assert line["status"] == 499
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_bug_is_a_500_with_a_request_id_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, access_logger.name)
    app = FastAPI()

    @app.get("/bug")
    async def bug(request: Request) -> None:
        raise ZeroDivisionError(f"secret of {request.url}")

    add_error_handlers(app)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    for inner in (app, Shortcut(app, routes)):
        edge = Edge(inner, Metrics(PrometheusBackend()), 4096, refusal)
        with TestClient(edge, raise_server_exceptions=False) as client:
            reply = client.get("/bug", headers={"x-request-id": "r1"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert (reply.headers["x-request-id"], reply.headers["x-should-retry"]) == ("r1", "false")
        assert "secret" not in reply.text
        said, line = caplog.records[-2].getMessage(), json.loads(caplog.records[-1].getMessage())
        assert said == "event=bug request_id=r1 error=ZeroDivisionError"
        assert (line["request_id"], line["status"], line["route"]) == ("r1", 500, "/bug")


def test_a_bug_in_the_middle_of_an_answer_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, access_logger.name)
    sent: list[Any] = []

    async def begins(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    edge = Edge(begins, Metrics(PrometheusBackend()), 4096, refusal)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(edge({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert json.loads(caplog.records[-1].getMessage())["status"] == 200


def test_the_first_of_repeated_headers_counts() -> None:
    sent = [(b"x-lambda", b"1"), (b"x-task-type", "m\u00fcll".encode("latin-1")), (b"x-lambda", b"2")]
    assert headers_of(Request({"type": "http", "headers": sent})) == {"x-lambda": "1", "x-task-type": "m\u00fcll"}
