from pathlib import Path

import pytest

from tests.data.formats.support import FIXTURES, PUT_ASIDE, assert_texts, imported, refusal, turns


def test_the_log_schema_is_read_as_it_is(tmp_path: Path) -> None:
    sessions = imported(FIXTURES / "own.jsonl", tmp_path, "seqroute")
    assert turns(sessions) == [
        ("a", "large", 0.5, 200_000),
        ("b", "small", None, 10_000),
        ("b", "large", 1.0, 700_000),
    ]
    assert sessions.group_id.tolist() == ["primes", "b", "b"]
    assert sessions.part.tolist() == ["fit", ""]
    assert_texts(sessions, ["Is 221 prime?", "What is the capital of Chile?", "And of Peru?"])


GOOD = b'"session_id": "s", "turn": 0, "text": "Hi", "model": "small", "quality": 1, "cost_usd": 1'
MODEL_RULE = "model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT)"
BAD: list[tuple[bytes, str]] = [
    (b"", "bad.jsonl: the log file is empty (0 bytes); it needs one row a turn"),
    (b"\n \n", "bad.jsonl: the log file has 0 rows; it needs one row a turn"),
    (b"hello", f"bad.jsonl:1: not a line of JSON: Expecting value: line 1 column 1 (char 0){PUT_ASIDE}"),
    (b"\n[1]", f"bad.jsonl:2: not a JSON object but a list; a log row is {{...}}{PUT_ASIDE}"),
    (b'{"turn": "0"}', f"bad.jsonl:1: turn must be int64, got a value of another type{PUT_ASIDE}"),
    (b'{"session_id": "s"}', "bad.jsonl: no row has turn; a log row needs it; columns with values: ['session_id']"),
    (
        b"{%s}" % GOOD.replace(b'"model": "small"', b'"model": "gpt-9"'),
        f"bad.jsonl:1: {MODEL_RULE}, got 'gpt-9'{PUT_ASIDE}",
    ),
    (
        b"{%s}" % GOOD.replace(b'"turn": 0', b'"turn": 1'),
        f"bad.jsonl:1: gap in turns: those of a session must be 0..T-1, got '1 where 0 is missing'{PUT_ASIDE}",
    ),
    (
        b'{%s, "quality": NaN}' % GOOD,
        f"bad.jsonl:1: quality must be in [0, 1], or null for a turn that was not judged, got nan{PUT_ASIDE}",
    ),
    (b'{%s, "cost_usd": -1}' % GOOD, f"bad.jsonl:1: cost_usd must be in [0, 1000000], got -1.0{PUT_ASIDE}"),
    (b'{%s, "part": "train"}' % GOOD, f"bad.jsonl:1: part must be fit, tune, test or null, got 'train'{PUT_ASIDE}"),
    (
        b'{%s, "quality": null}' % GOOD,
        "bad.jsonl: no row has quality; bring some by --judgements FILE (session_id, turn, quality)",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_file_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(content, "bad.jsonl", "seqroute", tmp_path, monkeypatch) == message
