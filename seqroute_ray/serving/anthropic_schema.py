"""POST /v1/messages: its rules as models, the way to the same TurnRequest as a chat completion, and its errors.

Not sent on, because chat completions have no place for them: cache_control, thinking, top_k, metadata and whatever the
models do not name. What would change the price or the promise of an answer is refused instead.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import to_json

from seqroute_ray.serving.chat_turn import turn_request
from seqroute_ray.serving.json_body import Body, check, read_object
from seqroute_ray.serving.openai_schema import Object, Tokens
from seqroute_ray.serving.requests import RequestError, TurnRequest

_SERVER_SIDE = "must be absent: what the provider runs for it cannot be bounded before the call"
_PROMISE = "must be absent: no upstream of this router can promise it"
UNSUPPORTED = {
    "mcp_servers": _SERVER_SIDE,
    "container": _SERVER_SIDE,
    "speed": "must be absent or 'standard': its cost cannot be bounded before the call",
    "inference_geo": _PROMISE,
}

BILLING_LINE = "x-anthropic-billing-header:"  # github.com/anthropics/claude-code/issues/68900


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Object


class ToolResultBlock(Body):
    """A result of text; images are refused."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class Message(Body):
    """One message; images, documents and results of a provider's own tools are refused."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Annotated[Block, Field(discriminator="type")]]


class Tool(Body):
    """A tool that the client runs; tools with another type are Anthropic's own and refused."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: Object
    strict: bool | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Body):
    user_id: str | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None


class MessagesRequest(Body):
    """A request of Anthropic's Messages API as this router takes it."""

    model: str = Field(max_length=256, description="`seqroute`, or a model of the catalog to pin it")
    max_tokens: Tokens
    messages: list[Message] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    mcp_servers: None = None
    container: None = None
    speed: Literal["standard"] | None = None
    inference_geo: None = None


def parse_messages(raw: bytes) -> TurnRequest:
    """Check a Messages request. Raises RequestError naming the field, the rule and, if harmless, the value."""
    body = read_object(raw)
    check(MessagesRequest, body, UNSUPPORTED)
    request = turn_request(chat_body(body))
    # The user's name served to recognise the session; providers of chat completions know no such metadata.
    fields = {name: value for name, value in request.fields.items() if name != "metadata"}
    return request._replace(fields=fields, include_usage=True)  # every stream of this API ends with usage


def chat_body(body: Object) -> Object:
    """A valid Messages body as a chat completion body."""
    chat: Object = {"messages": list(_chat_messages(body))}
    chat |= {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "stream") if name in body}
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        chat["tools"] = [_chat_tool(tool) for tool in body["tools"]]
    if choice := body.get("tool_choice"):
        chat["tool_choice"] = _chat_tool_choice(choice)
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    if output := (body.get("output_config") or {}).get("format"):
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": output["schema"], "strict": True},
        }
    if user_id := (body.get("metadata") or {}).get("user_id"):
        chat["metadata"] = {"user_id": user_id}
    return chat


def error_body(error: RequestError) -> Object:
    """An error as Anthropic's clients read it; our code and details stand beside its type."""
    fields = {"type": error_type(error.status), "message": str(error), "code": error.code}
    return {"type": "error", "error": {**fields, **error.details}}


def error_type(status: int) -> str:
    """Anthropic's word for a status."""
    known = {
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
    return known.get(status, "invalid_request_error" if status < 500 else "api_error")


def _chat_messages(body: Object) -> Iterator[Object]:
    if system := _system_text(body.get("system") or ""):
        yield {"role": "system", "content": system}
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "assistant":
            yield _chat_answer(blocks)
            continue
        # Results come first: they belong to the calls right before them.
        for block in _of(blocks, "tool_result"):
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _text(block.get("content") or "")}
        texts = _of(blocks, "text")
        if texts or not blocks:
            yield {"role": message["role"], "content": _text(texts)}


def _system_text(system: str | list[Object]) -> str:
    """Without Claude Code's first line: a hash that is new each time would undo every provider's prefix cache."""
    text = _text(system)
    return text.partition("\n")[2] if text.startswith(BILLING_LINE) else text


def _chat_answer(blocks: list[Object]) -> Object:
    texts, calls = _of(blocks, "text"), _of(blocks, "tool_use")
    message: Object = {"role": "assistant", "content": _text(texts) if texts or not calls else None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": to_json(call["input"]).decode()},
            }
            for call in calls
        ]
    if thoughts := _of(blocks, "thinking", "redacted_thinking"):
        message["thinking_blocks"] = thoughts  # LiteLLM's name; the turn is locked to the model that signed them
    return message


def _chat_tool(tool: Object) -> Object:
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _chat_tool_choice(choice: Object) -> str | Object:
    if choice["type"] == "tool":
        return {"type": "function", "function": {"name": choice.get("name") or ""}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice["type"]]


def _text(content: str | list[Object]) -> str:
    return content if isinstance(content, str) else "\n".join(block["text"] for block in content)


def _of(blocks: list[Object], *types: str) -> list[Any]:
    return [block for block in blocks if block["type"] in types]
