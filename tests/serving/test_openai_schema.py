import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving.openai_schema import ChatCompletionRequest, error_body, parse_chat
from seqroute_ray.serving.requests import RequestError, TurnRequest

SECRET = "my secret prompt"  # must never stand in an error


def user(content: Any = "hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def parse(**fields: Any) -> TurnRequest:
    return parse_chat(json.dumps({"messages": [user()], **fields}).encode())


def image() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": SECRET}}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


INVALID, UNSUPPORTED = "invalid_request", "unsupported_parameter"
# Input (fields beside one user message, or the raw body), code, the whole message or its beginning.
BROKEN: list[tuple[dict[str, Any] | bytes, str, str]] = [
    (b"", INVALID, "the request body is not valid JSON text: EOF"),
    (b"{", INVALID, "the request body is not valid JSON text"),
    (b"[]", INVALID, "the request body must be a JSON object, got a list of 0"),
    (b'"my secret prompt"', INVALID, "the request body must be a JSON object, got a text of 16 characters"),
    (b"\xff", INVALID, "the request body is not valid JSON text"),
    (b'{"a": "\\ud800"}', INVALID, "the request body is not valid JSON text"),
    (b'{"a": NaN}', INVALID, "the request body is not valid JSON text"),
    (b"[" * 100_000, INVALID, "the request body is not valid JSON text: recursion limit"),
    (b"{}", INVALID, "messages: is required"),
    ({"messages": None}, INVALID, "messages: should be a list, got None"),
    ({"messages": []}, INVALID, "messages: List should have at least 1 item after validation, not 0, got a list of 0"),
    ({"messages": SECRET}, INVALID, "messages: should be a list, got a text of 16 characters"),
    ({"messages": [SECRET]}, INVALID, "messages.0: should be an object, got a text of"),
    ({"messages": [{"content": SECRET}]}, INVALID, "messages.0.role: is required"),
    ({"messages": [user(), {"role": "robot"}]}, INVALID, "messages.1.role: should be 'system', 'developer', 'user'"),
    ({"messages": [{"role": "system", "content": SECRET}]}, INVALID, "messages: needs at least one of role user"),
    ({"messages": [user(), user(None)]}, INVALID, "messages.1.content: a user message needs text, got None"),
    ({"messages": [user(3)]}, INVALID, "messages.0.content: should be a valid string, got 3"),
    ({"messages": [user({"text": SECRET})]}, INVALID, "messages.0.content: should be a valid string, got an object"),
    ({"messages": [user([text(SECRET), {"type": "text"}])]}, INVALID, "messages.0.content.1.text: is required"),
    ({"messages": [user([{"text": SECRET}])]}, INVALID, "messages.0.content.0.type: is required"),
    (
        {"messages": [user([text("a"), image()])]},
        UNSUPPORTED,
        "messages.0.content.1.type: should be 'text', 'refusal', g",
    ),
    (
        {"messages": [user([{"type": "input_audio"}])]},
        UNSUPPORTED,
        "messages.0.content.0.type: should be 'text', 'refus",
    ),
    (
        {"messages": [user([{"type": "file"}])]},
        UNSUPPORTED,
        "messages.0.content.0.type: should be 'text', 'refusal', got",
    ),
    (
        {"tools": [{"type": "web_search"}]},
        UNSUPPORTED,
        "tools.0.type: should be 'function' or 'custom', got 'web_search'",
    ),
    ({"tools": SECRET}, INVALID, "tools: should be a list, got a text of 16 characters"),
    ({"model": 3}, INVALID, "model: should be a valid string, got 3"),
    ({"model": "m" * 257}, INVALID, "model: String should have at most 256 characters, got 'mmm"),
    ({"n": 2}, UNSUPPORTED, "n: must be 1: send one request an answer, got 2"),
    ({"best_of": 3}, UNSUPPORTED, "best_of: must be 1: send one request an answer, got 3"),
    (
        {"service_tier": "flex"},
        UNSUPPORTED,
        "service_tier: must be absent: its cost cannot be bounded before the call, got",
    ),
    (
        {"audio": {"voice": SECRET}},
        UNSUPPORTED,
        "audio: must be absent: its cost cannot be bounded before the call, got an",
    ),
    ({"modalities": ["text", "audio"]}, UNSUPPORTED, "modalities: must be absent"),
    ({"prediction": {"content": SECRET}}, UNSUPPORTED, "prediction: must be absent"),
    ({"web_search_options": {}}, UNSUPPORTED, "web_search_options: must be absent"),
    ({"models": ["a", "b"]}, UNSUPPORTED, "models: must be absent: the router chooses the model"),
    ({"max_tokens": 0}, INVALID, "max_tokens: should be greater than or equal to 1, got 0"),
    ({"max_tokens": True}, INVALID, "max_tokens: should be a valid integer, got True"),
    ({"max_tokens": "9"}, INVALID, "max_tokens: should be a valid integer, got a text of 1 characters"),
    ({"max_tokens": 10**30}, INVALID, "max_tokens: should be less than or equal to 2147483647, got 1000"),
    ({"max_completion_tokens": 1.5}, INVALID, "max_completion_tokens: should be a valid integer, got 1.5"),
    ({"temperature": "hot"}, INVALID, "temperature: should be a valid number, got a text of 3 characters"),
    (b'{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', INVALID, "top_p: should be a finite number"),
    ({"stream": "yes"}, INVALID, "stream: should be a valid boolean, got a text of 3 characters"),
    (
        {"stream_options": {"include_usage": 1}},
        INVALID,
        "stream_options.include_usage: should be a valid boolean, got 1",
    ),
    ({"stop": [SECRET, 3]}, INVALID, "stop.1: should be a valid string, got 3"),
    ({"metadata": SECRET}, INVALID, "metadata: should be an object, got a text of 16 characters"),
]


@pytest.mark.parametrize(("request_", "code", "message"), BROKEN)
def test_a_broken_request_is_refused_in_one_line_that_quotes_no_prompt(
    request_: dict[str, Any] | bytes, code: str, message: str
) -> None:
    raw = request_ if isinstance(request_, bytes) else json.dumps({"messages": [user()], **request_}).encode()
    with pytest.raises(RequestError) as caught:
        parse_chat(raw)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


TEXTS = st.text('ab:é{"\n\0', max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(ChatCompletionRequest.model_fields))
PARTS = st.sampled_from(["text", "type", "role", "content", "tool_calls", "refusal", "user_id", "session_id"])
NESTED = st.lists(st.dictionaries(PARTS, JSON_VALUES | st.sampled_from(["user", "assistant", "text"]), max_size=4))


@given(st.dictionaries(FIELDS, JSON_VALUES | NESTED | st.dictionaries(PARTS, JSON_VALUES), max_size=6), st.booleans())
def test_no_json_object_raises_anything_but_a_request_error(fields: dict[str, Any], with_message: bool) -> None:
    with contextlib.suppress(RequestError):
        parse_chat(json.dumps(fields | ({"messages": [user()]} if with_message else {})).encode())


@given(JSON_VALUES)
def test_no_json_value_raises_anything_but_a_request_error(value: Any) -> None:
    with pytest.raises(RequestError):
        parse_chat(json.dumps(value).encode())


def test_fields_go_upstream_as_they_came_without_those_that_the_router_sets() -> None:
    sent = {"model": "seqroute", "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}, "n": 1}
    kept = {"temperature": 0.5, "seed": 3, "an_unknown_field": {"a": [1, None]}, "user": "u", "top_k": 4}
    request = parse(**sent, **kept, audio=None)
    assert request.fields == {"messages": [user()], **kept}
    assert (request.stream, request.include_usage, request.max_tokens) == (True, True, 9)


def test_fields_of_a_message_that_no_model_here_names_go_upstream() -> None:
    message = {**user([{**text("a"), "cache_control": {"type": "ephemeral"}}]), "name": "ann"}
    assert parse(messages=[message]).fields["messages"] == [message]


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({}, None), ({"max_tokens": 9, "max_completion_tokens": 7}, 7), ({"max_completion_tokens": 5}, 5)],
)
def test_the_smaller_token_limit_is_asked_for(fields: dict[str, Any], asked: int | None) -> None:
    assert parse(**fields).max_tokens == asked


@pytest.mark.parametrize(
    ("model", "pinned"), [({}, None), ({"model": None}, None), ({"model": "seqroute"}, None), ({"model": "m"}, "m")]
)
def test_a_model_other_than_seqroute_is_pinned(model: dict[str, Any], pinned: str | None) -> None:
    assert parse(**model).pinned_model == pinned


def test_the_models_make_a_json_schema_that_has_every_field_and_allows_more() -> None:
    schema = ChatCompletionRequest.model_json_schema()
    assert {"messages", "max_completion_tokens", "stream_options", "prompt_cache_key"} <= set(schema["properties"])
    assert schema["required"] == ["messages"]
    assert schema["additionalProperties"] is True


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "budget_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_an_error_body_has_what_openais_clients_read_and_our_details(status: int, kind: str) -> None:
    body = error_body(RequestError("no", status=status, code="why", remaining_usd=0.5))
    fields = {"message": "no", "type": kind, "param": None, "code": "why", "remaining_usd": 0.5}
    assert body == {"error": fields}


def test_only_errors_that_pass_by_themselves_may_be_tried_again() -> None:
    assert RequestError("no", status=409).headers == {"x-should-retry": "false"}
    assert RequestError("no", status=401).headers == {"x-should-retry": "false", "www-authenticate": "Bearer"}
    assert RequestError("no", status=429, retry_after_s=3).headers == {"x-should-retry": "true", "retry-after": "3"}
