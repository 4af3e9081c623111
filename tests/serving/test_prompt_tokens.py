import base64
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving import prompt_tokens
from seqroute_ray.serving.prompt_tokens import (
    BOUND_FOR_TOOLS,
    BOUND_PER_MESSAGE,
    BOUND_PER_PROMPT,
    MAX_COUNTED_CHARACTERS,
    MAX_PIECE_BYTES,
    MAX_PROMPT_CHARACTERS,
    content_text,
    count,
    estimate,
    extra_texts,
    load_tokenizer,
    message_text,
)

TEXTS = st.text("ab \n\té漢😀{}09", max_size=40)
QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def whole(text: str) -> int:
    return len(load_tokenizer().encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", [QUESTION, "def f(x):\n    return x + 1\n", "漢字 and 😀", "", "  two  spaces "])
def test_counting_by_pieces_is_counting_the_whole(text: str) -> None:
    assert count(text) == whole(text)


@given(TEXTS)
def test_pieces_never_have_fewer_tokens_than_the_whole_nor_more_than_the_bytes(text: str) -> None:
    assert whole(text) <= count(text) <= len(text.encode())


@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS, min_size=1, max_size=4))
def test_the_bound_is_above_what_is_typical_and_below_a_token_a_byte(extras: list[str], messages: list[str]) -> None:
    tokens, num_bytes = estimate(extras, messages), sum(len(text.encode()) for text in extras + messages)
    assert 0 < tokens.typical <= tokens.bound
    fixed = BOUND_PER_MESSAGE * len(extras + messages) + BOUND_PER_PROMPT + BOUND_FOR_TOOLS * bool(extras)
    assert fixed <= tokens.bound <= num_bytes + fixed


def test_a_question_has_about_a_token_for_every_four_bytes() -> None:
    tokens = estimate([], [QUESTION])
    assert len(QUESTION) / 5 < tokens.typical < len(QUESTION) / 3
    assert tokens.bound < 2.5 * tokens.typical + BOUND_PER_PROMPT


def test_text_without_words_counts_a_token_a_byte() -> None:
    noise = base64.b64encode(random.Random(0).randbytes(MAX_PIECE_BYTES)).decode()
    assert count(noise) == len(noise)
    assert estimate([], [noise]).bound == len(noise) + BOUND_PER_MESSAGE + BOUND_PER_PROMPT


def test_past_the_limit_a_byte_is_a_token() -> None:
    assert count("a " * (MAX_COUNTED_CHARACTERS // 2)) < MAX_COUNTED_CHARACTERS * 0.6
    assert count("a " * (MAX_COUNTED_CHARACTERS // 2) + "é" * 10) - count("a " * (MAX_COUNTED_CHARACTERS // 2)) == 20


def test_past_a_whole_prompts_limit_a_byte_is_a_token() -> None:
    page = "a " * (MAX_COUNTED_CHARACTERS // 2)
    num_pages = MAX_PROMPT_CHARACTERS // len(page)
    full, more = estimate([], [page] * num_pages).bound, estimate([], [page] * (num_pages + 1)).bound
    assert full / num_pages < 0.75 * len(page)
    assert more - full == len(page) + BOUND_PER_MESSAGE


def test_forgetting_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_tokens, "MAX_PIECES", 3)
    monkeypatch.setattr(prompt_tokens, "MAX_TEXTS", 2)
    monkeypatch.setattr(prompt_tokens, "_texts", {})
    monkeypatch.setattr(prompt_tokens, "_pieces", prompt_tokens._Pieces())
    texts = [QUESTION, "one two three", "four five six seven"]
    assert [count(text) for text in texts * 2] == [whole(text) for text in texts * 2]
    assert len(prompt_tokens._pieces) <= 3


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "user", "content": "hi"}, "hi"),
    ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}, "a\nb"),
    ({"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}, '{"tool_calls":[{"id":"t"}]}'),
    ({"role": "assistant", "content": "a", "reasoning_content": "é", "refusal": None}, 'a{"reasoning_content":"é"}'),
]


@pytest.mark.parametrize(("message", "text"), MESSAGES)
def test_all_that_a_message_says_is_counted(message: dict[str, Any], text: str) -> None:
    assert message_text(message) == text
    assert text.startswith(content_text(message))


def test_tools_and_schemas_are_part_of_the_prompt() -> None:
    body = {"tools": [{"a": 1}], "functions": [], "response_format": {"type": "json_object"}, "messages": []}
    assert extra_texts(body) == ['[{"a":1}]', '{"type":"json_object"}']
