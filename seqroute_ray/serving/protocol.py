"""The OpenAI schema as far as it concerns us: what a request must and must not say, and what an error looks like."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqroute_ray.core.money import to_nusd
from seqroute_ray.serving.requests import RequestError as RequestError

SESSION_HEADER, BUDGET_HEADER, LAMBDA_HEADER = "x-session-id", "x-session-budget-usd", "x-lambda"
TASK_TYPE_HEADER = "x-task-type"  # as `source` in the logs; a type that the policy does not know is inferred
MAX_SESSION_ID_CHARACTERS = 256
MAX_BUDGET_USD = 1e9
TYPICAL_BYTES_PER_TOKEN = 4
MIN_BYTES_PER_TOKEN = 3  # see prompt_tokens_bound
TOKENS_PER_MESSAGE = 8  # role, separators and the chat template
SET_BY_ROUTER = ("model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n")
PROMPT_FIELDS = ("tools", "functions", "response_format")  # become part of the prompt
# What these cost does not follow from token counts and the catalog's prices.
UNPRICED_FIELDS = ("audio", "modalities", "prediction", "service_tier", "web_search_options")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One validated chat completion request."""

    text: str  # the last user message: what is embedded
    prompt_tokens: int  # typical estimate of the whole prompt
    prompt_tokens_bound: int  # upper bound of it
    max_tokens: int | None  # as asked
    fields: dict[str, Any]  # what goes upstream as it came


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHeaders:
    """What the request's headers say of session, budget, lambda and task; None or "" where absent."""

    session_id: str | None = None
    budget_nusd: int | None = None
    lambda_per_usd: float | None = None
    task_type: str = ""  # as the caller names it


def parse_body(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises RequestError."""
    try:
        body = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError, of a lone surrogate, is a ValueError
        raise RequestError(f"the request body is not valid JSON text ({type(error).__name__})") from error
    if not isinstance(body, dict):
        raise RequestError(f"the request body must be a JSON object, got {type(body).__name__}")
    return body


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Check a chat completion request. Raises RequestError naming the field and the rule."""
    if body.get("stream"):
        raise RequestError("stream must be false: streamed answers are not supported yet", code="unsupported_parameter")
    if body.get("n") not in (None, 1):
        raise RequestError(f"n must be 1, got {body['n']!r}; send one request an answer", code="unsupported_parameter")
    for name in UNPRICED_FIELDS:
        if body.get(name) is not None:
            message = f"{name} must be absent: its cost cannot be bounded before the call"
            raise RequestError(message, code="unsupported_parameter")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages must be a non-empty list of objects with role and content")
    return ChatRequest(
        text=last_user_text(messages),
        prompt_tokens=sum(_prompt_bytes(body)) // TYPICAL_BYTES_PER_TOKEN,
        prompt_tokens_bound=prompt_tokens_bound(body),
        max_tokens=_asked_tokens(body),
        fields={name: value for name, value in body.items() if name not in SET_BY_ROUTER},
    )


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """Text of the last message of role user. Raises RequestError when there is none."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return _content_text(message)
    raise RequestError("messages needs at least one message of role user: it is what the router reads")


def prompt_tokens_bound(body: Mapping[str, Any]) -> int:
    """Upper bound of the prompt's tokens: ceil(UTF-8 bytes / 3) + 8 a message, tools and schemas likewise.

    No tokenizer fits every provider. Text has about 4 bytes a token, so 3 leaves a third in hand; only unusual text
    (dense symbols, rare scripts) passes it, and then the bill above the reservation is recorded as overshoot.
    """
    return sum(math.ceil(n / MIN_BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for n in _prompt_bytes(body))


def _prompt_bytes(body: Mapping[str, Any]) -> list[int]:
    """UTF-8 bytes of every message, tool and schema."""
    parts = [body[name] for name in PROMPT_FIELDS if body.get(name) is not None]
    num_bytes = [len(json.dumps(part, ensure_ascii=False).encode()) for part in parts]
    return num_bytes + [_message_bytes(message) for message in body["messages"]]


def _message_bytes(message: dict[str, Any]) -> int:
    others = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    num_bytes = len(_content_text(message).encode())
    return num_bytes + (len(json.dumps(others, ensure_ascii=False).encode()) if others else 0)


def _content_text(message: dict[str, Any]) -> str:
    """A message's text: a string, a list of text parts, or nothing (a tool call). Raises RequestError."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    raise RequestError("a message's content must be text: what images, audio and files cost cannot be bounded")


def _asked_tokens(body: Mapping[str, Any]) -> int | None:
    """The smaller of max_tokens and max_completion_tokens; None when neither is given."""
    asked = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{name} must be an integer >= 1, got {value!r}")
        asked.append(value)
    return min(asked, default=None)


def parse_headers(headers: Mapping[str, str]) -> TurnHeaders:
    """Read and check our headers. Raises RequestError naming the header and the rule."""
    session_id = headers.get(SESSION_HEADER)
    if session_id is not None and not 0 < len(session_id) <= MAX_SESSION_ID_CHARACTERS:
        raise RequestError(
            f"{SESSION_HEADER} must have 1 to {MAX_SESSION_ID_CHARACTERS} characters, got {len(session_id)}"
        )
    budget, lam = headers.get(BUDGET_HEADER), headers.get(LAMBDA_HEADER)
    return TurnHeaders(
        session_id=session_id,
        budget_nusd=None if budget is None else budget_to_nusd(BUDGET_HEADER, budget),
        lambda_per_usd=None if lam is None else _lambda(lam),
        task_type=headers.get(TASK_TYPE_HEADER, ""),
    )


def budget_to_nusd(name: str, value: object) -> int:
    """A budget in USD, text or number, as nano-dollars. Raises RequestError naming the field."""
    budget_usd = _number(value)
    if not 1e-9 <= budget_usd <= MAX_BUDGET_USD:
        raise RequestError(f"{name} must be USD > 0, at least 1e-9 and at most {MAX_BUDGET_USD:g}, got {value!r}")
    return int(to_nusd(budget_usd))


def _lambda(value: str) -> float:
    lambda_per_usd = _number(value)
    if not 0 <= lambda_per_usd < math.inf:
        raise RequestError(f"{LAMBDA_HEADER} must be a finite number >= 0 (quality per USD), got {value!r}")
    return lambda_per_usd


def _number(value: object) -> float:
    """NaN, which no range admits, where the value is not a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def error_body(message: str, kind: str, code: str, **details: Any) -> dict[str, Any]:
    """An error as OpenAI clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **details}}
