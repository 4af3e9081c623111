"""What the router knows of one request, whichever API it came by; and the error that refuses one."""

from typing import Any, NamedTuple

from seqroute_ray.core.errors import SeqRouteError


class RequestError(SeqRouteError):
    """A request that breaks a rule, with the HTTP status, the code and the details of its answer."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request", **details: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.details = status, code, details

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the answer.

        The OpenAI and Anthropic clients repeat 409, 429 and 5xx by themselves; `x-should-retry` says whether they may:
        only where the same request can succeed later.
        """
        headers = {"x-should-retry": str("retry_after_s" in self.details).lower()}
        if "retry_after_s" in self.details:
            headers["retry-after"] = str(self.details["retry_after_s"])
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


class SessionHints(NamedTuple):
    """What a request's body says of the session it belongs to; see serving.identity."""

    named: tuple[tuple[str, str], ...] = ()  # (field, value) of session ids that clients send, best first
    fingerprint: str = ""  # sha256 of what all turns of a session begin with; "" where an id stands above


class TurnRequest(NamedTuple):
    """One validated request, as chat completion fields."""

    text: str  # the last user message: what is embedded
    prompt_tokens: int  # typical estimate of the whole prompt
    prompt_tokens_bound: int  # upper bound of it: what is reserved
    max_tokens: int | None  # as asked
    stream: bool
    include_usage: bool  # a streaming client asked for a last chunk with usage
    pinned_model: str | None  # the caller wants this model of the catalog; None: the router chooses
    fields: dict[str, Any]  # what goes upstream: without model, token limit, stream and stream_options
    session_hints: SessionHints
    lock: str  # why this turn must stay with the model of the turn before; "" where it need not; see serving.chat_turn
    prefix_bytes: int  # UTF-8 bytes before this turn's new messages: what a provider's prefix cache may hold
