"""What the replay stand-in reads of a chat request, as leniently as a provider, and the form of its answers."""

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seqroute_ray.serving.usage import parse_object

BYTES_PER_TOKEN = 4  # a provider cannot bill more prompt than was sent
TOKENS_PER_MESSAGE = 4  # role and separators


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """The part of a chat request that its replay depends on."""

    model: str
    text: str  # the last user message; what a question is looked up for
    most_prompt_tokens: int  # of what was sent
    max_tokens: int | None
    stream: bool
    include_usage: bool  # as the last chunk of a stream
    tool: str  # the function that has to be called; "": none


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayAnswer:
    """What is answered: a text, or a call of the function `tool` with it."""

    model: str
    text: str
    tool: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool  # by max_tokens

    @property
    def finish_reason(self) -> str:
        return "length" if self.is_cut else "tool_calls" if self.tool else "stop"

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def read_request(raw: bytes) -> ReplayRequest:
    """Raises ValueError where even a provider would."""
    body = parse_object(raw)
    messages = body.get("messages") if body else None
    if not body or not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("the request must be a JSON object with messages, a list of objects")
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    options = body.get("stream_options")
    num_bytes = sum(len(_text(message).encode()) for message in messages)
    return ReplayRequest(
        model=str(body.get("model")),
        text=next((_text(message) for message in reversed(messages) if message.get("role") == "user"), ""),
        most_prompt_tokens=num_bytes // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages),
        max_tokens=min((limit for limit in limits if type(limit) is int and limit > 0), default=None),
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        tool=_forced_tool(body),
    )


def completion(answer: ReplayAnswer) -> dict[str, Any]:
    """The whole answer in OpenAI's schema."""
    message: dict[str, Any] = {"role": "assistant", "content": None if answer.tool else answer.text}
    if answer.tool:
        message["tool_calls"] = [_call(answer.tool, _arguments(answer))]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**_head(answer, "chat.completion"), "choices": [choice], "usage": answer.usage}


def chunks(answer: ReplayAnswer, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The same answer as the chunks of a stream, a word each; [DONE] is not one of them."""
    head = _head(answer, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    if answer.tool:
        first = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_call(answer.tool, "")}]}
        yield chunk(first)
        for piece in _words(_arguments(answer)):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    else:
        yield chunk({"role": "assistant", "content": ""})
        for piece in _words(answer.text):
            yield chunk({"content": piece})
    yield chunk({}, answer.finish_reason)
    if include_usage:
        yield {**head, "choices": [], "usage": answer.usage}


def _head(answer: ReplayAnswer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-replay-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
    }


def _arguments(answer: ReplayAnswer) -> str:
    return '{"text": "' + answer.text + '"}'  # our own text: nothing in it needs an escape


def _call(tool: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_replay", "type": "function", "function": {"name": tool, "arguments": arguments}}


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _text(message: Mapping[str, Any]) -> str:
    """A string, or the text parts of a list; images and the like are passed over."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    # Half a surrogate pair, which JSON can hold, is no text to an embedder.
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _forced_tool(body: Mapping[str, Any]) -> str:
    """Name of the function that tool_choice forces: the named one, or with `required` the first one."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    if choice == "required" and isinstance(tools, list) and tools:
        choice = tools[0]
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) and tools else None
    return name if isinstance(name, str) else ""
