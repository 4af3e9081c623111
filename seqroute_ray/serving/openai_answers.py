"""Answers as OpenAI's clients read them: the provider's JSON and chunks, with what the router has to say beside.

A whole answer has a field `seqroute`. A stream has it in its last chunk, the one with usage, if the client asked for
that (stream_options.include_usage); else the headers and GET /v1/decisions/{id} tell.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from seqroute_ray.core.ledger import StoredAnswer
from seqroute_ray.serving.turn import Paid

DONE = b"data: [DONE]\n\n"
JSON_HEADERS = {"content-type": "application/json"}


class OpenAIRenderer:
    """One answer; see serving.turn.Renderer."""

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._usage_chunk: dict[str, Any] | None = None

    def whole(self, body: Mapping[str, Any], paid: Paid) -> StoredAnswer:
        return StoredAnswer(
            status=200, headers=JSON_HEADERS | paid.headers(), body=to_json({**body, "seqroute": paid.to_json()})
        )

    def begin(self) -> bytes:
        return b""

    def chunk(self, payload: bytes) -> bytes:
        """As it came; the usage that the router asked for is kept back for the end."""
        if b'"usage"' in payload and b'"usage":null' not in payload:
            parsed = json.loads(payload)
            if not parsed.get("choices") and parsed.get("usage"):
                self._usage_chunk = parsed
                return b""
        return b"data: " + payload + b"\n\n"

    def end(self, paid: Paid) -> bytes:
        if not self._include_usage or self._usage_chunk is None:
            return DONE
        return b"data: " + to_json({**self._usage_chunk, "seqroute": paid.to_json()}) + b"\n\n" + DONE

    def failure(self, message: str, code: str) -> bytes:
        error = {"message": message, "type": "upstream_error", "param": None, "code": code}
        return b"data: " + to_json({"error": error}) + b"\n\n"
