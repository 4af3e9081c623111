"""What a provider's answer says of its tokens, read off its JSON; for a stream chunk by chunk."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_PLAUSIBLE_TOKENS = 10**9  # a usage above this is no usage
NOT_GENERATED = frozenset({"role", "id", "type"})  # texts of a delta that are no tokens

# A chunk of plain text, with nothing else to read off it: most of a stream. A match costs a quarter of json.loads.
_SCALAR = rb'"\w+":\s?(?:null|\d+|"[^"\\]*")'
_NULLS = rb'(?:,\s?"\w+":\s?null)*'
_PLAIN_CHUNK = re.compile(
    rb"\{(?:" + _SCALAR + rb',\s?)*"choices":\s?\[\{"index":\s?0,\s?"delta":\s?\{(?:"role":\s?"assistant",\s?)?'
    rb'"content":\s?"([^"\\]*)"' + _NULLS + rb"\}" + _NULLS + rb"\}\](?:,\s?" + _SCALAR + rb")*\}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0  # part of prompt_tokens
    reasoning_tokens: int = 0  # within completion_tokens or beside them; see UpstreamConfig.usd_per_m_reasoning


@dataclass(slots=True)
class Tally:
    """What has been seen of one answer. It grows while a stream is read."""

    usage: Usage | None = None  # None: none came
    completion_bytes: int = 0  # UTF-8 bytes of text, reasoning and tool calls
    finish_reason: str | None = None
    done: bool = False  # a stream's [DONE] came, or the answer came whole

    @property
    def finished(self) -> bool:
        return self.done and self.finish_reason is not None

    def add_plain(self, payload: bytes) -> bool:
        """Count a chunk of plain text without parsing it; False where it has to be parsed."""
        plain = _PLAIN_CHUNK.fullmatch(payload)
        if plain is None:
            return False
        self.completion_bytes += len(plain[1])
        return True

    def add(self, answer: Mapping[str, Any], part: str) -> None:
        """Count a parsed chunk (part `delta`) or a whole answer (part `message`)."""
        self.usage = read_usage(answer.get("usage")) or self.usage  # the last one counts all
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self.completion_bytes += _text_bytes(choice.get(part))
                reason = choice.get("finish_reason")
                self.finish_reason = reason if isinstance(reason, str) else self.finish_reason


def read_usage(raw: object) -> Usage | None:
    """The `usage` of an answer; None when it is missing or nonsense."""
    if not isinstance(raw, dict):
        return None
    prompt_tokens, completion_tokens = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    if prompt_tokens is None or completion_tokens is None:
        return None
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_prompt_tokens=min(_detail(raw, "prompt_tokens_details", "cached_tokens"), prompt_tokens),
        reasoning_tokens=_detail(raw, "completion_tokens_details", "reasoning_tokens"),
    )


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object; None where it is none."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) if isinstance(details, dict) else None) or 0


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_PLAUSIBLE_TOKENS else None


def _text_bytes(part: object) -> int:
    """UTF-8 bytes of all texts in a message or delta, however deep: content, reasoning, tool names and arguments."""
    num_bytes, unseen = 0, [part]
    while unseen:
        value = unseen.pop()
        if isinstance(value, str):
            num_bytes += len(value.encode(errors="surrogatepass"))
        elif isinstance(value, list):
            unseen.extend(value)
        elif isinstance(value, dict):
            unseen.extend(inner for name, inner in value.items() if name not in NOT_GENERATED)
    return num_bytes
