import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving.anthropic_schema import MessagesRequest, chat_body, error_body, parse_messages
from seqroute_ray.serving.requests import RequestError, TurnRequest

SECRET = "my secret prompt"
INVALID, UNSUPPORTED = "invalid_request", "unsupported_parameter"


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def full(**fields: Any) -> dict[str, Any]:
    return {"model": "seqroute", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}


def parse(**fields: Any) -> TurnRequest:
    return parse_messages(json.dumps(full(**fields)).encode())


TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1]}}


def test_a_conversation_with_tools_becomes_chat_messages() -> None:
    messages = [
        {"role": "user", "content": [text("one", cache_control={"type": "ephemeral"}), text("two")]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("go"), USE]},
        {"role": "user", "content": [text("and?"), {"type": "tool_result", "tool_use_id": "t1", "content": "r"}]},
        {"role": "system", "content": "note"},
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [text("x"), text("y")]}]},
    ]
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}
    thoughts = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    assert chat_body(full(system=[text("be"), text("brief")], messages=messages))["messages"] == [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "go", "tool_calls": [call], "thinking_blocks": thoughts},
        {"role": "tool", "tool_call_id": "t1", "content": "r"},
        {"role": "user", "content": "and?"},
        {"role": "system", "content": "note"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "x\ny"},
    ]


def test_claude_codes_changing_first_line_is_not_sent_on() -> None:
    def system(line: str, *rest: str) -> Any:
        return parse(system=[text(part) for part in (line, *rest)]).fields["messages"]

    line = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch="
    assert system(line + "36ee5;", "You are", "x-anthropic-billing-header: 1") == system(
        "You are", "x-anthropic-billing-header: 1"
    )
    assert [message["role"] for message in system(line)] == ["user"]


def test_a_request_becomes_a_turn_like_any_other() -> None:
    request = parse(
        model="claude-x",
        system="s",
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop_sequences=["X"],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "user_1_account__session_abc"},
    )
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert request.fields == {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["X"],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    assert (request.text, request.max_tokens, request.pinned_model) == ("hi", 9, "claude-x")
    assert (request.stream, request.include_usage) == (True, True)
    assert request.session_hints.named == (("metadata.user_id", "abc"),)


@pytest.mark.parametrize(
    ("choice", "chat_choice"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_choices_of_tools_are_translated(choice: dict[str, str], chat_choice: object) -> None:
    assert parse(tools=[TOOL], tool_choice=choice).fields["tool_choice"] == chat_choice


def test_tools_and_signed_thoughts_lock_the_turn() -> None:
    asked, thought = {"role": "user", "content": "hi"}, {"type": "thinking", "thinking": "", "signature": "s"}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]}
    assert parse(messages=[asked, {"role": "assistant", "content": [USE]}, result]).lock == "tool_call"
    assert parse(messages=[asked, {"role": "assistant", "content": [thought, text("a")]}, asked]).lock == "reasoning"
    assert parse(messages=[asked, {"role": "assistant", "content": "a"}, asked]).lock == ""


def content(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


RESULT = {"type": "tool_result", "tool_use_id": "t"}
BROKEN: list[tuple[dict[str, Any] | bytes, str, str]] = [
    (b"[", INVALID, "the request body is not valid JSON text"),
    (b"{}", INVALID, "model: is required"),
    ({"max_tokens": None}, INVALID, "max_tokens: should be a valid integer, got None"),
    ({"max_tokens": 0}, INVALID, "max_tokens: should be greater than or equal to 1, got 0"),
    ({"model": None}, INVALID, "model: should be a valid string, got None"),
    ({"messages": []}, INVALID, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "user"}]}, INVALID, "messages.0.content: is required"),
    ({"messages": [{"role": "tool", "content": SECRET}]}, INVALID, "messages.0.role: should be 'user', 'assistant' or"),
    ({"messages": [{"role": "assistant", "content": SECRET}]}, INVALID, "messages: needs at least one of role user"),
    (content(SECRET), INVALID, "messages.0.content.0: should be an object, got a text of 16 characters"),
    (content({"text": SECRET}), INVALID, "messages.0.content.0.type: is required"),
    (
        content({"type": "image", "source": SECRET}),
        UNSUPPORTED,
        "messages.0.content.0.type: should be 'text', 'thinking",
    ),
    (content({"type": "document"}), UNSUPPORTED, "messages.0.content.0.type: should be"),
    (content({"type": "text", "text": 3}), INVALID, "messages.0.content.0.text: should be a valid string, got 3"),
    (content({"type": "tool_result"}), INVALID, "messages.0.content.0.tool_use_id: is required"),
    (content({**USE, "input": SECRET}), INVALID, "messages.0.content.0.input: should be an object, got a text of 16"),
    (
        content({**RESULT, "content": [{"type": "image"}]}),
        UNSUPPORTED,
        "messages.0.content.0.content.0.type: should be",
    ),
    ({"system": 3}, INVALID, "system: should be a valid string, got 3"),
    ({"system": [{"type": "image"}]}, UNSUPPORTED, "system.0.type: should be 'text', got 'image'"),
    ({"tools": [{"name": "f"}]}, INVALID, "tools.0.input_schema: is required"),
    ({"tools": [{**TOOL, "type": "web_search_20250305"}]}, UNSUPPORTED, "tools.0.type: should be 'custom', got 'web_s"),
    (
        {"tool_choice": {"type": "all"}},
        UNSUPPORTED,
        "tool_choice.type: should be 'auto', 'any', 'tool' or 'none', got 'a",
    ),
    ({"stop_sequences": SECRET}, INVALID, "stop_sequences: should be a list, got a text of 16 characters"),
    ({"temperature": "hot"}, INVALID, "temperature: should be a valid number, got a text of 3 characters"),
    ({"metadata": {"user_id": 3}}, INVALID, "metadata.user_id: should be a valid string, got 3"),
    ({"mcp_servers": [{}]}, UNSUPPORTED, "mcp_servers: must be absent"),
    ({"container": "c"}, UNSUPPORTED, "container: must be absent"),
    ({"speed": "fast"}, UNSUPPORTED, "speed: must be absent or 'standard'"),
    ({"inference_geo": "us"}, UNSUPPORTED, "inference_geo: must be absent"),
    (
        {"output_config": {"format": {"type": "xml"}}},
        UNSUPPORTED,
        "output_config.format.type: should be 'json_schema', g",
    ),
]


@pytest.mark.parametrize(("request_", "code", "message"), BROKEN)
def test_a_broken_request_is_refused_in_one_line_that_quotes_no_prompt(
    request_: dict[str, Any] | bytes, code: str, message: str
) -> None:
    raw = request_ if isinstance(request_, bytes) else json.dumps(full(**request_)).encode()
    with pytest.raises(RequestError) as caught:
        parse_messages(raw)
    assert str(caught.value).startswith(message)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert SECRET not in str(caught.value)


TEXTS = st.text('ab:é{"\n\0', max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
BLOCKS = st.lists(
    st.builds(lambda block, extra: {**block, **extra}, st.sampled_from([text("a"), USE, RESULT]), st.just({}))
    | st.dictionaries(st.sampled_from(["type", "text", "input", "content"]), JSON_VALUES, max_size=3),
    max_size=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS | BLOCKS}),
    max_size=4,
)


@given(MESSAGES, st.dictionaries(st.sampled_from(sorted(MessagesRequest.model_fields)), JSON_VALUES, max_size=3))
def test_no_json_object_raises_anything_but_a_request_error(messages: Any, fields: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        parse_messages(json.dumps(full(messages=messages) | fields).encode())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "conflict_error"),
        (429, "rate_limit_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_an_error_body_has_anthropics_schema_and_our_details(status: int, kind: str) -> None:
    error = {"type": kind, "message": "no", "code": "why", "remaining_usd": 0.5}
    assert error_body(RequestError("no", status=status, code="why", remaining_usd=0.5)) == {
        "type": "error",
        "error": error,
    }
