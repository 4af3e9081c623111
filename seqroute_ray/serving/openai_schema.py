"""POST /v1/chat/completions: its rules as models, the way to a TurnRequest, and what errors look like.

The models are the one truth: requests are checked by them, and the OpenAPI page is made of them. A field that they do
not name goes upstream as it came.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from seqroute_ray.serving.chat_turn import turn_request
from seqroute_ray.serving.json_body import Body, check, read_object
from seqroute_ray.serving.requests import RequestError, TurnRequest

MAX_TOKENS = 2**31 - 1
_UNPRICED = "must be absent: its cost cannot be bounded before the call"
_OTHER_MODEL = "must be absent: the router chooses the model that is reserved and paid for"
# Field -> rule. models, plugins and transforms are OpenRouter's, fallbacks LiteLLM's, best_of vLLM's.
UNSUPPORTED = {
    "n": "must be 1: send one request an answer",
    "best_of": "must be 1: send one request an answer",
    "models": _OTHER_MODEL,
    "fallbacks": _OTHER_MODEL,
    **dict.fromkeys(("audio", "modalities", "prediction", "service_tier", "web_search_options", "plugins"), _UNPRICED),
}

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Object = dict[str, Any]


class TextPart(Body):
    type: Literal["text"]
    text: str


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


class Message(Body):
    """One message; images, audio and files are refused: what they cost cannot be bounded before the call."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    tool_calls: list[Object] | None = None


class Tool(Body):
    """A tool that the client runs; tools that a provider runs are refused: they have prices of their own."""

    type: Literal["function", "custom"]


class StreamOptions(Body):
    include_usage: bool | None = None


class ChatCompletionRequest(Body):
    """A chat completion request as this router takes it."""

    model: str | None = Field(None, max_length=256, description="`seqroute`, or a model of the catalog to pin it")
    messages: list[Message] = Field(min_length=1)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Object | None = None
    litellm_session_id: str | None = None
    session_id: str | None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    models: None = None
    fallbacks: None = None
    audio: None = None
    modalities: None = None
    prediction: None = None
    service_tier: None = None
    web_search_options: None = None
    plugins: None = None


def parse_chat(raw: bytes) -> TurnRequest:
    """Check a chat completion request. Raises RequestError naming the field, the rule and, if harmless, the value."""
    body = read_object(raw)
    check(ChatCompletionRequest, body, UNSUPPORTED)
    return turn_request({name: value for name, value in body.items() if name not in UNSUPPORTED})


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as OpenAI's clients read it; our details stand beside its code."""
    fields = {"message": str(error), "type": error_type(error.status), "param": None, "code": error.code}
    return {"error": {**fields, **error.details}}


def error_type(status: int) -> str:
    """OpenAI's word for a status; budget_error is ours."""
    known = {401: "authentication_error", 402: "budget_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
