"""How many tokens a prompt has: a typical estimate and an upper bound, without any provider's tokenizer.

Counted with Llama 2's vocabulary of 32,000, which ships in the embedder's wheel. It is smaller than any provider's
today, so it needs more tokens than they do, on most text; MARGIN is above the worst ratio measured
(benchmarks/prompt_tokens.py). No tokenizer of bytes needs more tokens than bytes: that bounds it where the vocabulary
knows nothing. Where a provider counts more all the same, its bill above the reservation is recorded as overshoot.

Counts are kept, not texts: a session sends its earlier messages again each turn, and they are counted once. Pieces
(words with the space before them) are kept for the tokens they have.
"""

import functools
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace

MARGIN = 1.4  # the hungriest tokenizer measured needs 1.16 times Llama 2's tokens on real questions
TYPICAL_RATIO = 0.87  # o200k's tokens per token of Llama 2, median over real questions
MIN_BYTES_PER_TOKEN = 3  # of an answer of which only the bytes are known; prose has 4, one text in seven fewer than 3
BOUND_PER_MESSAGE, TYPICAL_PER_MESSAGE = 8, 4  # role, separators
BOUND_PER_PROMPT = 32  # begin, end, and what a chat template adds by itself, such as the date
BOUND_FOR_TOOLS = 530  # the longest instruction that a provider adds for tools (Anthropic, to Claude 3 Opus)
PROMPT_FIELDS = ("tools", "functions", "response_format")  # become part of the prompt
MAX_COUNTED_CHARACTERS = 1 << 15  # of one text; what follows counts a token a byte: 8 ms of CPU is enough
MAX_PROMPT_CHARACTERS = 1 << 20  # of a whole prompt, likewise: beyond the context of nearly all models
MAX_PIECE_BYTES = 256  # a longer piece (base64, a script without spaces) counts a token a byte
MAX_PIECES, MAX_TEXTS = 50_000, 100_000  # kept; then they are forgotten, and counted anew

_PIECE = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Of a whole prompt."""

    typical: int
    bound: int


def estimate(extras: Sequence[str], messages: Sequence[str]) -> PromptTokens:
    """Of a prompt's tools and schemas, and its messages, as texts."""
    counts, left = [], MAX_PROMPT_CHARACTERS
    for text in (*extras, *messages):
        num_bytes = len(text.encode())
        counts.append((num_bytes, count(text) if left > 0 else num_bytes))
        left -= len(text)
    bound = sum(min(num_bytes, math.ceil(MARGIN * tokens)) + BOUND_PER_MESSAGE for num_bytes, tokens in counts)
    return PromptTokens(
        typical=round(sum(TYPICAL_RATIO * tokens + TYPICAL_PER_MESSAGE for _, tokens in counts)),
        bound=bound + BOUND_PER_PROMPT + (BOUND_FOR_TOOLS if extras else 0),
    )


def count(text: str) -> int:
    """Tokens of a text with Llama 2's vocabulary; at most its UTF-8 bytes."""
    key = (hash(text), len(text))
    if (known := _texts.get(key)) is not None:
        return known
    head, rest = text[:MAX_COUNTED_CHARACTERS], text[MAX_COUNTED_CHARACTERS:]
    if len(_texts) >= MAX_TEXTS:
        _texts.clear()
    _texts[key] = sum(map(_pieces.__getitem__, _PIECE.findall(head))) + len(rest.encode())
    return _texts[key]


@functools.cache
def load_tokenizer() -> Tokenizer:
    """Read the vocabulary, once; 0.1 s that a server spends at its start."""
    spec = importlib.util.find_spec("wordllama")  # not imported: it would configure logging
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("wordllama, which brings the tokenizer, is not installed")
    tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.normalizer = Replace(" ", "▁")  # without the prefix: a piece has its own space
    return tokenizer


class _Pieces(dict[str, int]):
    """Piece -> tokens."""

    def __missing__(self, piece: str) -> int:
        tokens = len(piece.encode())
        if tokens <= MAX_PIECE_BYTES:
            tokens = len(load_tokenizer().encode(piece, add_special_tokens=False).ids)
        if len(self) >= MAX_PIECES:
            self.clear()
        self[piece] = tokens
        return tokens


_pieces = _Pieces()
_texts: dict[tuple[int, int], int] = {}  # (hash, length) -> tokens


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
