import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats.support import FIXTURES, PUT_ASIDE, assert_texts, imported, refusal, turns


def test_the_score_is_the_last_turns_and_attempts_at_a_task_are_one_group(tmp_path: Path) -> None:
    sessions = imported(FIXTURES / "trajectory.jsonl", tmp_path, "trajectory")
    assert turns(sessions) == [
        ("alone", "small", 0.25, 0),
        ("try-1", "small", None, 21_000),
        ("try-1", "large", 1.0, 2_000_000),
        ("try-2", "small", 0.0, 0),
    ]
    assert sessions.group_id.tolist() == ["alone", "task", "task", "task"]
    assert_texts(sessions, ["Say hello.", "List the files.", "Fix the test.", "List the files."])


STEP = {"text": "Hi", "model": "small", "cost_usd": 0.001}


def episode(**fields: Any) -> bytes:
    return json.dumps({"session_id": "s", "score": 1, "steps": [STEP]} | fields).encode()


def step(**fields: Any) -> bytes:
    return episode(steps=[STEP | fields])


STEPS = f"bad.jsonl:1: steps must be a list of at least one {{text, model, usage or cost_usd}}{PUT_ASIDE}"
MODEL_RULE = "model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT)"
BAD: list[tuple[bytes, str]] = [
    (b"null", f"bad.jsonl:1: not a JSON object but a NoneType; a log row is {{...}}{PUT_ASIDE}"),
    (episode(steps=[]), STEPS),
    (episode(steps=None), STEPS),
    (episode(steps=["Hi"]), STEPS),
    (episode(score=None), f"bad.jsonl:1: score is missing; an episode has one in [0, 1]{PUT_ASIDE}"),
    (episode(score="won"), f"bad.jsonl:1: quality must be double, got a value of another type{PUT_ASIDE}"),
    (
        episode(score=2),
        f"bad.jsonl:1: quality must be in [0, 1], or null for a turn that was not judged, got 2.0{PUT_ASIDE}",
    ),
    (
        episode(session_id=None),
        "bad.jsonl: no row has session_id; a log row needs it; columns with values: "
        "['cost_usd', 'model', 'quality', 'text', 'turn']",
    ),
    (
        step(text=["Hi"]),
        "bad.jsonl: no row has embedding or text; a log row needs it; columns with values: "
        "['cost_usd', 'model', 'quality', 'session_id', 'turn']",
    ),
    (step(model="gpt-9"), f"bad.jsonl:1: {MODEL_RULE}, got 'gpt-9'{PUT_ASIDE}"),
    (step(cost_usd=-1), f"bad.jsonl:1: cost_usd must be in [0, 1000000], got -1.0{PUT_ASIDE}"),
    (
        step(cost_usd=None, usage={"prompt_tokens": 1.5, "completion_tokens": 1}),
        f"bad.jsonl:1: prompt_tokens must be int64, got a value of another type{PUT_ASIDE}",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_episode_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(content, "bad.jsonl", "trajectory", tmp_path, monkeypatch) == message
