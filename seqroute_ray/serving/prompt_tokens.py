"""How many tokens a prompt has: a typical estimate and an upper bound, without any provider's tokenizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

TYPICAL_BYTES_PER_TOKEN = 4
MIN_BYTES_PER_TOKEN = 3
TOKENS_PER_MESSAGE = 8  # role, separators and the chat template
PROMPT_FIELDS = ("tools", "functions", "response_format")  # become part of the prompt


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Of a whole prompt."""

    typical: int
    bound: int


def estimate(extras: Sequence[str], messages: Sequence[str]) -> PromptTokens:
    """Of a prompt's tools and schemas, and its messages, as texts.

    No tokenizer fits every provider. Text has about 4 bytes a token, so 3 leaves a third in hand; only unusual text
    (dense symbols, rare scripts) passes it, and then the bill above the reservation is recorded as overshoot.
    """
    num_bytes = [len(text.encode()) for text in (*extras, *messages)]
    return PromptTokens(
        typical=sum(num_bytes) // TYPICAL_BYTES_PER_TOKEN,
        bound=sum(math.ceil(n / MIN_BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for n in num_bytes),
    )


def extra_texts(body: Mapping[str, Any]) -> list[str]:
    """Tools and schemas of a chat completion body, as JSON."""
    return [to_json(body[name]).decode() for name in PROMPT_FIELDS if body.get(name)]


def message_text(message: Mapping[str, Any]) -> str:
    """All that a model reads of a message: its text, and the rest (tool calls, names, reasoning) as JSON."""
    others = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    return content_text(message) + (to_json(others).decode() if others else "")


def content_text(message: Mapping[str, Any]) -> str:
    """A message's text, one line a part; "" where it has none."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in content)
