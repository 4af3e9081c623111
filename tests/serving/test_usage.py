import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.serving.usage import Tally, Usage, parse_object, read_usage


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **fields}


def dumps(value: object, compact: bool, ascii_only: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":") if compact else None, ensure_ascii=ascii_only).encode()


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['"', "\\", '","finish_reason":"stop', "\n"]
)
FIELDS = st.sampled_from(
    [{}, {"usage": None}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {"obfuscation": "x"}, {"error": {}}]
)


@settings(deadline=None)  # the machine may be busy
@given(
    TEXTS,
    st.sampled_from([{}, {"role": "assistant"}]),
    st.sampled_from([{}, {"refusal": None}, {"refusal": "no"}, {"reasoning_content": "so"}]),
    st.sampled_from([None, "stop"]),
    FIELDS,
    st.booleans(),
    st.booleans(),
)
def test_a_chunk_that_is_not_parsed_counts_like_one_that_is(
    text: str,
    before: dict[str, Any],
    after: dict[str, Any],
    reason: str | None,
    fields: dict[str, Any],
    compact: bool,
    ascii_only: bool,
) -> None:
    payload = dumps(chunk({**before, "content": text, **after}, reason, **fields), compact, ascii_only)
    plain, parsed = Tally(), Tally()
    parsed.add(json.loads(payload), "delta")
    if plain.add_plain(payload):
        assert plain == parsed
        assert not json.loads(payload).get("error")
    if ascii_only or any(character in text for character in '"\\\n'):
        return
    # Those of a usual stream are not parsed.
    expected = not any(map(after.get, after)) and reason is None and not (fields.get("usage") or "error" in fields)
    assert plain.add_plain(payload) == (expected and not any(ord(character) < 32 for character in text))


def test_tool_calls_and_reasoning_count_as_completion() -> None:
    tally = Tally()
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    tally.add(chunk({"role": "assistant", "content": None, "tool_calls": [call]}), "delta")
    assert tally.completion_bytes == len("add") + len('{"a":1}')
    tally.add(chunk({"reasoning_content": "why"}, "tool_calls"), "delta")
    assert tally.completion_bytes == len("add") + len('{"a":1}') + 3
    assert tally.finish_reason == "tool_calls"
    assert not tally.finished  # [DONE] has not come


def test_the_last_usage_counts_and_nonsense_leaves_it() -> None:
    tally = Tally()
    tally.add({"usage": {"prompt_tokens": 5, "completion_tokens": 1}}, "delta")
    tally.add({"usage": {"prompt_tokens": 5, "completion_tokens": 2}}, "delta")
    tally.add({"usage": None, "choices": [None, {"delta": [1], "finish_reason": 7}]}, "delta")
    assert tally == Tally(usage=Usage(prompt_tokens=5, completion_tokens=2))


def test_details_of_a_usage_are_read() -> None:
    raw = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 16},
    }
    wanted = Usage(prompt_tokens=10, completion_tokens=20, cached_prompt_tokens=8, reasoning_tokens=16)
    assert read_usage(raw) == wanted


NONSENSE: list[object] = [
    None,
    [],
    {},
    {"prompt_tokens": 1},
    *({"prompt_tokens": 1, "completion_tokens": n} for n in (-1, 1.5, True, "2", 10**10)),
]


@pytest.mark.parametrize("raw", NONSENSE)
def test_a_usage_that_is_nonsense_is_none(raw: object) -> None:
    assert read_usage(raw) is None


def test_more_cached_tokens_than_tokens_are_all_of_them() -> None:
    raw = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    usage = read_usage(raw)
    assert usage is not None
    assert usage.cached_prompt_tokens == 3


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_none(raw: bytes) -> None:
    assert parse_object(raw) is None
