from typing import Any

import pytest

from seqroute_ray.serving.chat_turn import turn_request

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def say(role: str, content: str | None = "", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def turn(*messages: dict[str, Any], **fields: Any) -> Any:
    return turn_request({"messages": list(messages), **fields})


def test_the_last_user_message_is_what_is_routed() -> None:
    parts = [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]
    assert turn(say("user", "first"), say("user"), say("assistant", None)).text == ""
    assert turn(say("user", "first"), {"role": "user", "content": parts}, say("tool", "x")).text == "sec\nond"


LOCKS = [
    ("", [say("user")]),
    ("", [say("user"), say("assistant"), say("user")]),
    ("tool_call", [say("user"), say("assistant", None, tool_calls=[CALL]), say("tool", tool_call_id="c")]),
    ("tool_call", [say("user"), say("assistant", None, tool_calls=[CALL]), say("tool", tool_call_id="c"), say("user")]),
    ("tool_call", [say("user"), say("assistant", None, function_call={"name": "f"}), say("function", name="f")]),
    ("", [say("user"), say("assistant", None, tool_calls=[CALL]), say("tool"), say("assistant"), say("user")]),
    ("", [say("user"), say("assistant", tool_calls=[]), say("user")]),
    ("", [say("user"), say("assistant", reasoning_content="hm"), say("user")]),
    ("reasoning", [say("user"), say("assistant", reasoning_content="hm")]),
    ("reasoning", [say("user"), say("assistant", thinking_blocks=[{"signature": "s"}]), say("user")]),
    ("reasoning", [say("user"), say("assistant", reasoning_details=[{"type": "reasoning.encrypted"}]), say("user")]),
]


@pytest.mark.parametrize(("lock", "messages"), LOCKS)
def test_a_turn_is_locked_while_its_model_waits_for_tools_or_reasoning(
    lock: str, messages: list[dict[str, Any]]
) -> None:
    assert turn(*messages).lock == lock


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "container"])
def test_a_turn_that_points_at_a_providers_state_is_locked(field: str) -> None:
    assert turn(say("user"), **{field: "id"}).lock == "provider_state"
    assert turn(say("user"), **{field: None}).lock == ""


PREFIXES = [
    (0, [say("user", "q" * 10)]),
    (3, [say("system", "sss"), say("user", "q" * 10)]),
    (3 + 4 + 5, [say("system", "sss"), say("user", "uuuu"), say("assistant", "aaaaa"), say("user", "q" * 10)]),
    (4 + 5, [say("user", "uuuu"), say("assistant", "aaaaa"), say("tool", "t" * 10), say("tool", "t" * 10)]),
    (3, [say("system", "sss"), say("user", "uuuu"), say("assistant", "prefill")]),
    (6, [say("system", "é" * 3), say("user")]),
]


@pytest.mark.parametrize(("num_bytes", "messages"), PREFIXES)
def test_the_prefix_is_what_stands_before_this_turns_new_messages(
    num_bytes: int, messages: list[dict[str, Any]]
) -> None:
    assert turn(*messages).prefix_bytes == num_bytes
    tools = [{"type": "function"}]
    assert turn(*messages, tools=tools).prefix_bytes == num_bytes + len('[{"type":"function"}]')
