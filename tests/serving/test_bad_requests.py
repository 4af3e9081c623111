"""Bad requests over HTTP: each with its exact status and code, in the schema of the API that was asked."""

import asyncio
import json
from pathlib import Path
from typing import Any

from .service_support import Api, answered, api_over
from .support import QUESTIONS, trio

CHAT, MESSAGES, ROUTE = "/v1/chat/completions", "/v1/messages", "/v1/route"
SAID = [{"role": "user", "content": QUESTIONS[0]}]
TOOL_RESULT_FIRST = [{"role": "assistant", "content": "hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]
DIGITS = "9" * 5000

Body = dict[str, Any] | bytes
Row = tuple[str, Body, dict[str, str], int, str]  # path, body, headers, status, code


def with_fields(**fields: Any) -> dict[str, Any]:
    return {"messages": SAID, **fields}


BOTH: list[tuple[Body, dict[str, str], int, str]] = [
    (b"", {}, 400, "invalid_request"),
    (b"{", {}, 400, "invalid_request"),
    (b"[1]", {}, 400, "invalid_request"),
    (b"null", {}, 400, "invalid_request"),
    (b"\xff\xfe", {}, 400, "invalid_request"),
    (b'{"messages": NaN}', {}, 400, "invalid_request"),
    (b"[" * 100_000, {}, 400, "invalid_request"),
    ({}, {}, 400, "invalid_request"),
    (with_fields(messages=[]), {}, 400, "invalid_request"),
    (with_fields(messages="hi"), {}, 400, "invalid_request"),
    (with_fields(messages=[1]), {}, 400, "invalid_request"),
    (with_fields(messages=[{"role": "king", "content": "hi"}]), {}, 400, "invalid_request"),
    (with_fields(messages=TOOL_RESULT_FIRST), {}, 400, "invalid_request"),
    (with_fields(messages=[{"role": "user", "content": None}]), {}, 400, "invalid_request"),
    (with_fields(max_tokens=0), {}, 400, "invalid_request"),
    (with_fields(max_tokens=2**31), {}, 400, "invalid_request"),
    (with_fields(max_tokens="many"), {}, 400, "invalid_request"),
    (with_fields(max_tokens=1.5), {}, 400, "invalid_request"),
    (with_fields(stream="yes"), {}, 400, "invalid_request"),
    (with_fields(temperature="hot"), {}, 400, "invalid_request"),
    (with_fields(model="gpt-9"), {}, 404, "model_not_found"),
    (with_fields(model="x" * 257), {}, 400, "invalid_request"),
    (with_fields(), {"x-session-id": "padded "}, 400, "invalid_request"),
    (with_fields(), {"x-session-id": "x" * 257}, 400, "invalid_request"),
    (with_fields(), {"x-session-id": ""}, 400, "invalid_request"),
    (with_fields(), {"x-session-budget-usd": "much"}, 400, "invalid_request"),
    (with_fields(), {"x-session-budget-usd": "0"}, 400, "invalid_request"),
    (with_fields(), {"x-session-budget-usd": "nan"}, 400, "invalid_request"),
    (with_fields(), {"x-session-budget-usd": "1e7"}, 400, "invalid_request"),
    (with_fields(), {"x-session-budget-usd": "0.02"}, 409, "budget_conflict"),
    (with_fields(), {"x-session-id": "new", "x-session-budget-usd": ""}, 400, "invalid_request"),
    (with_fields(), {"x-max-turn-usd": "-1"}, 400, "invalid_request"),
    (with_fields(), {"x-lambda": "-1"}, 400, "invalid_request"),
    (with_fields(), {"x-lambda": "inf"}, 400, "invalid_request"),
    (with_fields(), {"x-quality": "11"}, 400, "invalid_request"),
    (with_fields(), {"x-quality": "5", "x-lambda": "1"}, 400, "invalid_request"),
    (with_fields(), {"x-task-type": "x" * 129}, 400, "invalid_request"),
    (with_fields(), {"idempotency-key": ""}, 400, "invalid_request"),
    (with_fields(), {"idempotency-key": "k" * 256}, 400, "invalid_request"),
    (with_fields(), {"x-session-id": "closed"}, 409, "session_closed"),
]
OPENAI: list[Row] = [
    (CHAT, with_fields(n=2), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(n=None), {}, 200, ""),
    (CHAT, with_fields(models=["a", "b"]), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(modalities=["audio"]), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(service_tier="priority"), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(messages=IMAGE), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(tools=[{"type": "web_search"}]), {}, 400, "unsupported_parameter"),
    (CHAT, with_fields(tools="all"), {}, 400, "invalid_request"),
    (CHAT, with_fields(stream_options={"include_usage": "yes"}), {}, 400, "invalid_request"),
    (CHAT, json.dumps(with_fields(seed=1)).replace("1}", DIGITS + "}").encode(), {}, 400, "invalid_request"),
    (CHAT, json.dumps(with_fields(top_p=1)).replace("1}", "1e999}").encode(), {}, 400, "invalid_request"),
    (CHAT, json.dumps(with_fields(anything=1)).replace("1}", DIGITS + "}").encode(), {}, 400, "invalid_request"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400, "invalid_request"),
    (ROUTE, with_fields(n=2), {}, 400, "unsupported_parameter"),
    (ROUTE, with_fields(), {"x-session-id": "closed"}, 409, "session_closed"),
    ("/v1/feedback", {"score": 1}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"score": 1, "decision_id": "d", "session_id": "s"}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"score": 2, "session_id": "s"}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"score": True, "session_id": "s"}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"session_id": "s"}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"score": 1, "session_id": "nobody"}, {}, 404, "session_not_found"),
    ("/v1/feedback", {"score": 1, "decision_id": "dec_0"}, {}, 404, "decision_not_found"),
    ("/v1/feedback", {"score": 1, "session_id": " s"}, {}, 400, "invalid_request"),
    ("/v1/feedback", {"score": 1, "session_id": "s", "judge": ""}, {}, 400, "invalid_request"),
    ("/v1/feedback", b"", {}, 400, "invalid_request"),
    ("/v1/nothing", {}, {}, 404, "not_found"),
    ("/v1/models", {}, {}, 405, "method_not_allowed"),
    ("/v1/sessions/s", {}, {}, 405, "method_not_allowed"),
]
ANTHROPIC: list[Row] = [
    (MESSAGES, with_fields(model="seqroute"), {}, 400, "invalid_request"),  # Anthropic demands max_tokens
    (MESSAGES, with_fields(max_tokens=5), {}, 400, "invalid_request"),  # ... and a model
    (MESSAGES, with_fields(max_tokens=5, model="seqroute", mcp_servers=[]), {}, 400, "unsupported_parameter"),
    (MESSAGES, with_fields(max_tokens=5, model="seqroute", speed="fast"), {}, 400, "unsupported_parameter"),
    (MESSAGES, with_fields(max_tokens=5, model="seqroute", messages=IMAGE), {}, 400, "unsupported_parameter"),
    (
        MESSAGES,
        with_fields(max_tokens=5, model="seqroute", tools=[{"type": "bash_20250124", "name": "bash"}]),
        {},
        400,
        "unsupported_parameter",
    ),
    (MESSAGES, with_fields(max_tokens=5, model="seqroute", system=7), {}, 400, "invalid_request"),
]
PUTS: list[tuple[str, Body, int, str]] = [
    ("/v1/sessions/s", {}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": 1, "more": 2}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": True}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": -1}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": 1e300}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": None}, 400, "invalid_request"),
    ("/v1/sessions/s", {"budget_usd": 0.001}, 409, "budget_conflict"),
    ("/v1/sessions/s", b"x", 400, "invalid_request"),
    ("/v1/sessions/", {"budget_usd": 1}, 400, "invalid_request"),
    ("/v1/sessions/" + "x" * 257, {"budget_usd": 1}, 400, "invalid_request"),
    ("/v1/sessions/a%00b", {"budget_usd": 1}, 400, "invalid_request"),
    ("/v1/sessions/%20a", {"budget_usd": 1}, 400, "invalid_request"),
]


async def send(api: Api, method: str, path: str, body: Body, headers: dict[str, str]) -> tuple[int, Any, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    all_headers = {**api.headers, "content-type": "application/json", **headers}
    async with api.http.request(method, api.base_url + path, data=raw, headers=all_headers) as response:
        return response.status, await response.json(), response.headers


def rows() -> list[tuple[str, *Row]]:
    chat = [("POST", CHAT, body, headers, status, code) for body, headers, status, code in BOTH]
    defaults = {"model": "seqroute", "max_tokens": 20}
    messages = [
        ("POST", MESSAGES, body if isinstance(body, bytes) else defaults | body, headers, status, code)
        for body, headers, status, code in BOTH
    ]
    own = [("POST", *row) for row in OPENAI + ANTHROPIC]
    return [*chat, *messages, *own, *(("PUT", path, body, {}, status, code) for path, body, status, code in PUTS)]


def test_every_bad_request_has_its_status_and_code_in_the_schema_of_its_api(tmp_path: Path) -> None:
    async def scenario() -> None:
        wrong = []
        async with api_over(tmp_path, answered()) as api:
            await api.chat(max_tokens=20)
            await api.call("PUT", "/v1/sessions/closed", {"budget_usd": 0.01})
            await api.call("DELETE", "/v1/sessions/closed")
            for method, path, body, headers, status, code in rows():
                got_status, reply, got_headers = await send(api, method, path, body, headers)
                error = reply.get("error", {})
                row = f"{method} {path} {str(body)[:80]} {headers}: {got_status} {str(error)[:150]}"
                expected = (got_status, error.get("code", "")) == (status, code)
                if not expected or (status >= 400 and not in_schema(path, status, reply, got_headers)):
                    wrong.append(row)
                if QUESTIONS[0] in str(error):
                    wrong.append(f"quotes the prompt: {row}")
            calls = len(api.provider.bodies)
            session = await api.session()
        assert wrong == []
        assert (session["num_turns"], session["reserved_usd"]) == (2, 0)  # the first, and the one with n null
        assert calls == 2

    asyncio.run(scenario())


def in_schema(path: str, status: int, reply: Any, headers: Any) -> bool:
    error = reply["error"]
    common = bool(error["message"]) and headers["x-should-retry"] == "false" and bool(headers["x-request-id"])
    if path == MESSAGES:
        types = {400: "invalid_request_error", 404: "not_found_error", 409: "conflict_error"}
        return common and reply["type"] == "error" and error["type"] == types[status]
    return common and "type" not in reply and error["type"] == "invalid_request_error" and error["param"] is None


def test_there_are_models_to_be_unknown() -> None:
    assert "gpt-9" not in trio().names
