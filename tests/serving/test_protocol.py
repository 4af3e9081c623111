import math
from typing import Any

import pytest

from seqroute_ray.serving.protocol import (
    RequestError,
    TurnHeaders,
    parse_body,
    parse_chat,
    parse_headers,
    prompt_tokens_bound,
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_the_prompt_bound_is_a_third_of_the_bytes_and_eight_a_message() -> None:
    assert prompt_tokens_bound({"messages": [user("x" * 30)]}) == 10 + 8
    assert prompt_tokens_bound({"messages": [user("x" * 31), user("é" * 3)]}) == (11 + 8) + (2 + 8)
    assert prompt_tokens_bound({"messages": [user([{"type": "text", "text": "x" * 30}])]}) == 10 + 8


def test_a_typical_prompt_has_a_token_for_every_four_bytes() -> None:
    chat = parse_chat({"messages": [user("x" * 31), user("é" * 3)]})  # 37 bytes
    assert (chat.prompt_tokens, chat.prompt_tokens_bound) == (9, (11 + 8) + (2 + 8))


def test_tools_and_tool_calls_count_as_prompt() -> None:
    bare = parse_chat({"messages": [user("hi")]})
    tools = [{"type": "function", "function": {"name": "f" * 300}}]
    with_tools = parse_chat({"messages": [user("hi")], "tools": tools})
    with_name = parse_chat({"messages": [{**user("hi"), "name": "n" * 300}]})
    for chat in (with_tools, with_name):
        assert chat.prompt_tokens > bare.prompt_tokens + 75
        assert chat.prompt_tokens_bound > bare.prompt_tokens_bound + 100


def test_a_request_keeps_unknown_fields_and_loses_those_that_the_router_sets() -> None:
    body = {"model": "auto", "messages": [user("hi")], "max_tokens": 9, "max_completion_tokens": 7, "stream": False}
    chat = parse_chat({**body, "n": 1, "temperature": 0.5, "seed": 3})
    assert chat.fields == {"messages": [user("hi")], "temperature": 0.5, "seed": 3}
    assert (chat.text, chat.max_tokens) == ("hi", 7)


def test_the_last_user_message_is_what_is_routed() -> None:
    messages = [user("first"), user("second"), {"role": "assistant", "content": None}, {"role": "tool", "content": "x"}]
    assert parse_chat({"messages": messages}).text == "second"


BROKEN = [
    ({"stream": True}, "stream must be false"),
    ({"n": 2}, "n must be 1, got 2"),
    ({"service_tier": "priority"}, "service_tier must be absent"),
    ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens must be an integer >= 1, got 1.5"),
    ({"max_tokens": True}, "got True"),
    ({"messages": []}, "messages must be a non-empty list"),
    ({"messages": "hi"}, "messages must be a non-empty list"),
    ({"messages": ["hi"]}, "messages must be a non-empty list"),
    ({"messages": [{"role": "system", "content": "hi"}]}, "at least one message of role user"),
    ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}, "content must be text"),
    ({"messages": [user(3)]}, "content must be text"),
]


@pytest.mark.parametrize(("fields", "message"), BROKEN)
def test_a_broken_request_names_field_and_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_chat({"messages": [user("hi")], **fields})
    assert caught.value.status == 400


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"a": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="the request body"):
        parse_body(raw)


def test_headers_are_read_in_their_units() -> None:
    money = {"x-session-budget-usd": "0.05", "x-lambda": "2.5"}
    assert parse_headers({"x-session-id": "s", **money, "x-task-type": "sums"}) == TurnHeaders(
        session_id="s", budget_nusd=50_000_000, lambda_per_usd=2.5, task_type="sums"
    )
    assert parse_headers({}) == TurnHeaders(session_id=None, budget_nusd=None, lambda_per_usd=None, task_type="")


BROKEN_HEADERS = [
    ("x-session-id", ""),
    ("x-session-id", "s" * 257),
    *[("x-session-budget-usd", value) for value in ("0", "-1", "nan", "inf", "1e10", "five", "", str(math.pi) + "$")],
    *[("x-lambda", value) for value in ("-1", "nan", "inf", "much", "")],
]


@pytest.mark.parametrize(("name", "value"), BROKEN_HEADERS)
def test_a_broken_header_is_named(name: str, value: str) -> None:
    with pytest.raises(RequestError, match=f"^{name} must "):
        parse_headers({name: value})
