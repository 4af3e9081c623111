"""Answers as Anthropic's clients read them; `seqroute` stands in a message, and in a stream's `message_delta`."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from seqroute_ray.core.ledger import StoredAnswer
from seqroute_ray.serving.anthropic_answers import AnthropicStream, message_of
from seqroute_ray.serving.openai_answers import JSON_HEADERS
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.turn import Paid


class AnthropicRenderer:
    """One answer; see serving.turn.Renderer."""

    def __init__(self, prompt_tokens: int) -> None:
        self._stream = AnthropicStream(prompt_tokens)

    def whole(self, body: Mapping[str, Any], paid: Paid) -> StoredAnswer:
        message = message_of({**body, "seqroute": paid.to_json()})
        return StoredAnswer(status=200, headers=JSON_HEADERS | paid.headers(), body=to_json(message))

    def begin(self) -> bytes:
        return b""

    def chunk(self, payload: bytes) -> bytes:
        return self._stream.feed(json.loads(payload))

    def end(self, paid: Paid) -> bytes:
        return self._stream.feed({"choices": [], "seqroute": paid.to_json()}) + self._stream.finish()

    def failure(self, message: str, code: str) -> bytes:
        return self._stream.fail(RequestError(message, status=502, code=code))
