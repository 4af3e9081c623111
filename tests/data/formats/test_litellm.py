"""LiteLLM's spend logs, as a proxy wrote them (see tests/data/fixtures/README.md)."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats.support import FIXTURES, PUT_ASIDE, Turn, assert_texts, imported, refusal, turns

ALONE = "bfb97596-906f-490b-b171-8630e0491cd3"  # a call without a session gets one of its own
EXPECTED: list[
    Turn
] = [  # spend, but for the third turn of sess-dev-0002: 129 and 13 tokens at 2.5 and 10 USD per million
    (ALONE, "large", None, 135_000),
    ("sess-dev-0002", "large", None, 215_000),
    ("sess-dev-0002", "large", None, 395_000),
    ("sess-dev-0002", "large", None, 452_500),
    ("sess-dev-0002", "large", None, 732_500),
    ("sess-dev-0002", "large", None, 620_000),
    ("sess-quiz-0003", "large", None, 127_500),
    ("sess-quiz-0003", "large", None, 0),  # from the cache
    ("sess-quiz-0003", "large", None, 317_500),
    ("sess-quiz-0003", "large", None, 372_500),
    ("sess-support-0001", "small", None, 9_150),
    ("sess-support-0001", "small", None, 32_250),
    ("sess-support-0001", "small", None, 37_650),
    ("sess-support-0001", "small", 0.75, 45_900),
]
TEXTS = [
    "What is the capital of Australia? (no session)",
    "Write a Python function that reverses the words of a sentence.",
    "It loses double spaces. Keep them.",
    "Now add a test for the empty string.",
    "That is not what I asked for. Use unittest.",
    "Thanks, that works.",
    "What is the capital of Australia?",
    "What is the capital of Australia?",
    "Are you sure?",
    "And how many people live there?",
    "How do I get a refund for order 1042?",
    "How do I get a refund for order 1042?",  # the call after the one of a tool
    "Yes, please open the refund.",
    "Can you send me a receipt too?",
]


def judged(folder: Path) -> Path:
    judgements = folder / "judgements.jsonl"
    judgements.write_text('{"session_id": "sess-support-0001", "turn": 3, "quality": 0.75, "judge": "rubric-1"}')
    return judgements


@pytest.mark.parametrize("name", ["litellm.jsonl", "litellm.parquet"])
def test_spend_logs_become_sessions_and_failed_calls_are_left_out_and_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sessions = imported(FIXTURES / name, tmp_path, "litellm", judgements=judged(tmp_path))
    assert turns(sessions) == EXPECTED
    assert_texts(sessions, TEXTS)
    assert caplog.messages == [f"event=left_out_failed_calls file={FIXTURES / name} calls=3 first_lines=7,14,16"]


def test_a_json_array_is_read_as_json_lines_are(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FIXTURES / "litellm.jsonl").read_text().splitlines()]
    array = tmp_path / "spend.json"
    array.write_text(json.dumps(rows, indent=1))
    assert turns(imported(array, tmp_path, "litellm", judgements=judged(tmp_path))) == EXPECTED


def call(**fields: Any) -> bytes:
    good = {
        "request_id": "r",
        "session_id": "s",
        "startTime": "2026-01-02T10:00:00.5",
        "model": "small",
        "spend": 0.001,
        "messages": json.dumps([{"role": "user", "content": "Hi"}]),
        "status": "success",
    }
    return json.dumps(good | fields).encode()


NO_TIME = f"bad.json:1: no time: startTime must be an ISO 8601 time{PUT_ASIDE}"
NO_TEXT = (
    "bad.json:1: no text: messages has none; set store_prompts_in_spend_logs: true in the proxy's general_settings"
    f"{PUT_ASIDE}"
)
MODEL_RULE = "model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT)"
BAD: list[tuple[bytes, str]] = [
    (b"[{}", "bad.json: not a JSON array: Expecting ',' delimiter: line 1 column 4 (char 3)"),
    (b"[]", "bad.json: the log file has 0 rows; it needs one row a turn"),
    (b"[1]", f"bad.json:1: not a JSON object but a int; a log row is {{...}}{PUT_ASIDE}"),
    (call(messages="{}"), NO_TEXT),
    (call(messages=[]), NO_TEXT),
    (call(messages="Hi"), NO_TEXT),
    (call(startTime=""), NO_TIME),
    (call(spend="free"), f"bad.json:1: cost_usd must be double, got a value of another type{PUT_ASIDE}"),
    (call(spend=-1), f"bad.json:1: cost_usd must be in [0, 1000000], got -1.0{PUT_ASIDE}"),
    (call(model="vertex_ai/gpt-9"), f"bad.json:1: {MODEL_RULE}, got 'vertex_ai/gpt-9'{PUT_ASIDE}"),
    (call(status="failure"), "bad.json: every call failed; an import needs calls with answers"),
    (call(), "bad.json: no row has quality; bring some by --judgements FILE (session_id, turn, quality)"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_spend_logs_are_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(content, "bad.json", "litellm", tmp_path, monkeypatch) == message
