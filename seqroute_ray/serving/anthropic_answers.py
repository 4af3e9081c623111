"""Chat completion answers as Anthropic's clients read them: a whole message, or the events of a stream.

A block that an Anthropic client has seen stop cannot go on. So the block begun first streams as it comes; what arrives
of another one while a tool call is open waits until the end. Providers send one call after another, so little waits.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json, to_json

from seqroute_ray.serving.anthropic_schema import error_body
from seqroute_ray.serving.requests import RequestError

Object = dict[str, Any]
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
PING = b'event: ping\ndata: {"type":"ping"}\n\n'  # keeps an idle connection open


def message_of(answer: Object) -> Object:
    """A chat completion as a message; its `seqroute` extension comes along."""
    choice = answer["choices"][0]
    said, calls = choice["message"], choice["message"].get("tool_calls") or []
    text = said.get("content") or said.get("refusal")
    blocks: list[Object] = [{"type": "text", "text": text}] if text else []
    blocks += [_tool_use(call.get("id"), call["function"]["name"], call["function"].get("arguments")) for call in calls]
    message = _message(answer, blocks, _usage(answer.get("usage"), 0))
    message["stop_reason"] = _stop_reason(choice.get("finish_reason"), bool(calls))
    return message | ({"seqroute": answer["seqroute"]} if "seqroute" in answer else {})


class AnthropicStream:
    """Turns the chunks of one streamed chat completion into events; call `feed` for each, then `finish` once."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens  # estimate: clients want it first, providers count last
        self._started = False
        self._num_blocks = 0
        self._open: str | int | None = None  # "text", or a tool call's index
        self._waiting: dict[str | int, Object] = {}  # of other blocks; deltas merged
        self._called = False
        self._finish_reason: str | None = None
        self._usage: Object | None = None
        self._seqroute: Any = None

    def feed(self, chunk: Object) -> bytes:
        """Events of one chunk, maybe none."""
        return b"".join(self._events(chunk))

    def finish(self) -> bytes:
        """The last events: the answer is complete."""
        return b"".join(self._last_events())

    def fail(self, error: RequestError) -> bytes:
        """The event that ends a stream which cannot go on."""
        return _event("error", error_body(error))

    def _events(self, chunk: Object) -> Iterator[bytes]:
        if not self._started:
            self._started = True
            message = _message(chunk, [], {"input_tokens": self._prompt_tokens, "output_tokens": 0})
            yield _event("message_start", {"message": message})
        self._usage = chunk.get("usage") or self._usage
        self._seqroute = chunk.get("seqroute", self._seqroute)
        for choice in chunk.get("choices") or []:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            delta = choice.get("delta") or {}
            if text := delta.get("content") or delta.get("refusal"):
                yield from self._piece("text", {"text": text})
            for call in delta.get("tool_calls") or []:
                self._called = True
                function = call.get("function") or {}
                piece = {"id": call.get("id"), "name": function.get("name"), "json": function.get("arguments")}
                yield from self._piece(call.get("index", 0), piece)

    def _piece(self, key: str | int, piece: Object) -> Iterator[bytes]:
        if self._open is None or (self._open == "text" and key != "text"):
            yield from self._begin(key, piece)
        elif key == self._open:
            yield from self._delta(piece)
        else:
            _merge(self._waiting.setdefault(key, {}), piece)

    def _begin(self, key: str | int, piece: Object) -> Iterator[bytes]:
        yield from self._end()
        block = (
            {"type": "text", "text": ""} if key == "text" else _tool_use(piece.get("id"), piece.get("name") or "", "")
        )
        yield _event("content_block_start", {"index": self._num_blocks, "content_block": block})
        self._open = key
        yield from self._delta(piece)

    def _delta(self, piece: Object) -> Iterator[bytes]:
        delta: Object = {"type": "input_json_delta", "partial_json": piece.get("json")}
        if "text" in piece:
            delta = {"type": "text_delta", "text": piece["text"]}
        if delta.get("text") or delta.get("partial_json"):
            yield _event("content_block_delta", {"index": self._num_blocks, "delta": delta})

    def _end(self) -> Iterator[bytes]:
        if self._open is not None:
            yield _event("content_block_stop", {"index": self._num_blocks})
            self._open = None
            self._num_blocks += 1

    def _last_events(self) -> Iterator[bytes]:
        if not self._started:
            yield from self._events({})
        for key, piece in self._waiting.items():
            yield from self._begin(key, piece)
        yield from self._end()
        delta = {"stop_reason": _stop_reason(self._finish_reason, self._called), "stop_sequence": None}
        last: Object = {"delta": delta, "usage": _usage(self._usage, self._prompt_tokens)}
        if self._seqroute is not None:
            last["seqroute"] = self._seqroute
        yield _event("message_delta", last)
        yield _event("message_stop", {})


def _merge(waiting: Object, piece: Object) -> None:
    """Texts grow; names and ids come once."""
    for name, value in piece.items():
        if value:
            waiting[name] = waiting.get(name, "") + value if name in ("text", "json") else value


def _message(answer: Object, blocks: list[Object], usage: Object) -> Object:
    return {
        "id": f"msg_{uuid.uuid4().hex}" if not answer.get("id") else str(answer["id"]),
        "type": "message",
        "role": "assistant",
        "model": answer.get("model") or "",
        "content": blocks,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _tool_use(call_id: str | None, name: str, arguments: str | None) -> Object:
    return {"type": "tool_use", "id": call_id or f"toolu_{uuid.uuid4().hex}", "name": name, "input": _input(arguments)}


def _input(arguments: str | None) -> Object:
    """A call's arguments; those that are no JSON object, as models write them at times, under `invalid_json`."""
    try:
        parsed = from_json(arguments or "{}")
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"invalid_json": arguments}


def _stop_reason(finish_reason: str | None, called: bool) -> str:
    if called and finish_reason in (None, "stop"):  # as some providers end a tool call
        return "tool_use"
    return STOP_REASONS.get(finish_reason or "stop", "end_turn")


def _usage(usage: Object | None, prompt_tokens: int) -> Object:
    """Anthropic counts tokens read from a cache apart from the other input. Without usage: the estimate."""
    if not usage:
        return {"input_tokens": prompt_tokens, "output_tokens": 0}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


def _event(kind: str, fields: Object) -> bytes:
    data = fields if kind == "error" else {"type": kind, **fields}
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json(data))
