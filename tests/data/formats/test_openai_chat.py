import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats.support import FIXTURES, PUT_ASIDE, assert_texts, imported, refusal, turns


def test_gateway_batch_and_stored_calls_become_turns_in_the_order_of_time_and_id(tmp_path: Path) -> None:
    judgements = tmp_path / "judgements.jsonl"
    judgements.write_text('{"session_id": "stored", "turn": 1, "quality": 0.5}')
    sessions = imported(FIXTURES / "openai_chat.jsonl", tmp_path, "openai-chat", judgements=judgements)
    assert turns(sessions) == [  # 0.15 and 0.6, 2.5 and 10 USD per million tokens
        ("batch", "small", None, 150_600),
        ("gateway", "small", None, 21_000),
        ("gateway", "large", None, 700_000),
        ("stored", "large", None, 20_000),
        ("stored", "large", 0.5, 30_000),
    ]
    assert sessions.prompt_tokens.tolist() == [1000, 100, 200, 4, 4]
    assert_texts(
        sessions,
        ["Is 221 prime?", "What is the capital of Chile?", "And of Peru?\nOne word.", "Is 223 prime?", "And 227?"],
    )


def call(**fields: Any) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    good = {
        "session_id": "s",
        "created": 1767348000,
        "request": {"messages": [{"role": "user", "content": "Hi"}]},
        "response": {"id": "c", "model": "small", "usage": usage},
    }
    return json.dumps(good | fields).encode()


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


NO_TIME = f"bad.jsonl:1: no time: created or timestamp must be Unix seconds or an ISO 8601 time{PUT_ASIDE}"
NO_TEXT = f"bad.jsonl:1: no text: request.messages needs a last user message with text{PUT_ASIDE}"
MODEL_RULE = "model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT)"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1}
BAD: list[tuple[bytes, str]] = [
    (
        b"{",
        "bad.jsonl:1: not a line of JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
        + PUT_ASIDE,
    ),
    (call(created=None), NO_TIME),
    (call(timestamp="yesterday"), NO_TIME),
    (call(created=True), NO_TIME),
    (call(request=None), NO_TEXT),
    (call(request=said({"role": "assistant", "content": "Hi"})), NO_TEXT),
    (call(request=said({"role": "user", "content": [{"type": "image_url"}]})), NO_TEXT),
    (call(session_id=7), f"bad.jsonl:1: session_id must be string, got a value of another type{PUT_ASIDE}"),
    (
        call(response={"model": "gpt-9", "usage": USAGE}),
        f"bad.jsonl:1: {MODEL_RULE}, got 'gpt-9'{PUT_ASIDE}",
    ),
    (
        call(session_id=None),
        "bad.jsonl: no row has session_id; a log row needs it; columns with values: "
        "['completion_tokens', 'model', 'prompt_tokens', 'text']",
    ),
    (call(error={"code": 500}), "bad.jsonl: every call failed; an import needs calls with answers"),
    (call(), "bad.jsonl: no row has quality; bring some by --judgements FILE (session_id, turn, quality)"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_call_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(content, "bad.jsonl", "openai-chat", tmp_path, monkeypatch) == message


def test_the_same_call_twice_is_one_turn_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(call() + b"\n" + call(), "bad.jsonl", "openai-chat", tmp_path, monkeypatch)
    assert message.startswith("bad.jsonl:2: duplicate turn: a session has one row a turn, got 0; 2 of 2 rows")


def test_a_call_without_cost_is_refused_beside_one_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = call() + b"\n" + call(session_id="t", response={"model": "small", "usage": {"prompt_tokens": 1}})
    message = refusal(logs, "bad.jsonl", "openai-chat", tmp_path, monkeypatch)
    assert message.startswith(
        "bad.jsonl:2: no cost: a row needs cost_usd, or prompt_tokens and completion_tokens; 1 of 2"
    )
