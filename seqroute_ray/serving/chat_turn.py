"""From a valid chat completion body to a TurnRequest: what routing has to know of it.

A turn is locked to the model of the turn before it ("tool_call") while that model waits for the results of its tools;
("reasoning") while its reasoning has to come back to it: signed or encrypted anywhere, plain since the last user
message; ("provider_state") when the request points at something that one provider keeps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seqroute_ray.serving.identity import session_hints, without_session_ids
from seqroute_ray.serving.prompt_tokens import content_text, estimate, extra_texts, message_text
from seqroute_ray.serving.requests import RequestError, TurnRequest

ROUTED_MODEL = "seqroute"  # the name under which the router chooses
SET_BY_ROUTER = frozenset({"model", "max_tokens", "max_completion_tokens", "stream", "stream_options"})
STATE_FIELDS = ("previous_response_id", "conversation", "container")
# Of a message: OpenRouter's and LiteLLM's fields of signed or encrypted reasoning; a signature stands inside.
SEALED_FIELDS = ("thinking_blocks", "reasoning_details", "encrypted_content", "signature", "thought_signature")
PLAIN_FIELDS = ("reasoning_content", "reasoning")

Message = Mapping[str, Any]


def turn_request(body: dict[str, Any]) -> TurnRequest:
    """body: as the models of openai_schema demand. Raises RequestError when there is no user message to read."""
    messages = body["messages"]
    last_user = _last_user(messages)
    extras, texts = extra_texts(body), [message_text(message) for message in messages]
    tokens = estimate(extras, texts)
    model, options = body.get("model"), body.get("stream_options") or {}
    return TurnRequest(
        text=content_text(messages[last_user]),
        prompt_tokens=tokens.typical,
        prompt_tokens_bound=tokens.bound,
        max_tokens=_asked_tokens(body),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        pinned_model=None if model in (None, "", ROUTED_MODEL) else model,
        fields=without_session_ids({name: value for name, value in body.items() if name not in SET_BY_ROUTER}),
        session_hints=session_hints(body),
        lock=lock_of(body, last_user),
        prefix_bytes=sum(len(text.encode()) for text in (*extras, *texts[: _first_new(messages)])),
    )


def lock_of(body: Mapping[str, Any], last_user: int) -> str:
    """Why this turn must stay with the model of the turn before; "" where it need not."""
    messages = body["messages"]
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    called = bool(answers) and bool(
        messages[answers[-1]].get("tool_calls") or messages[answers[-1]].get("function_call")
    )
    if called or messages[-1]["role"] in ("tool", "function"):
        return "tool_call"
    for at in answers:
        fields = SEALED_FIELDS + PLAIN_FIELDS * (at > last_user)
        if any(messages[at].get(name) for name in fields):
            return "reasoning"
    return "provider_state" if any(body.get(name) for name in STATE_FIELDS) else ""


def _last_user(messages: Sequence[Message]) -> int:
    """Position of the last user message; its text is what is embedded. Raises RequestError."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            if messages[at].get("content") is None:
                raise RequestError(f"messages.{at}.content: a user message needs text, got None")
            return at
    raise RequestError("messages: needs at least one of role user, it is what the router reads, got none")


def _first_new(messages: Sequence[Message]) -> int:
    """Position of the first message that no earlier turn sent: what follows the last answer, or a trailing prefill."""
    at = len(messages)
    while at and messages[at - 1]["role"] == "assistant":
        at -= 1
    while at and messages[at - 1]["role"] in ("user", "tool", "function"):
        at -= 1
    return at


def _asked_tokens(body: Mapping[str, Any]) -> int | None:
    """The smaller of max_tokens and max_completion_tokens; None when neither is given."""
    asked = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    return min(asked, default=None)
