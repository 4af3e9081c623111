"""Bytes of a request to a checked model; a broken rule becomes one line that never quotes a prompt."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from seqroute_ray.serving.requests import RequestError

MAX_QUOTED_CHARACTERS = 40
# Fields whose text is a keyword of an API, never a prompt: only these are quoted.
QUOTED_FIELDS = frozenset({"role", "type", "model", "reasoning_effort", "service_tier", "tool_choice"})
# In pydantic's path of an error, alternatives of a union and not fields: by type, and (before a field) by `type`.
TYPE_TAGS = frozenset({"str", "int", "float", "bool"})
BLOCK_TAGS = frozenset({"text", "refusal", "thinking", "redacted_thinking", "tool_use", "tool_result"})
RULES = {  # pydantic's kind of error -> the rule in words of JSON
    "model_type": "should be an object",
    "model_attributes_type": "should be an object",
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "missing": "is required",
    "union_tag_not_found": "is required",
}

Model = TypeVar("Model", bound=BaseModel)


class Body(BaseModel):
    """A JSON object of a request: types as JSON has them; fields unknown here pass through."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


def read_object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises RequestError."""
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:  # its message has a position, never text
        raise RequestError(f"the request body is not valid JSON text: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(f"the request body must be a JSON object, got {_shape(body)}")
    return body


def check(schema: type[Model], body: dict[str, Any], unsupported: Mapping[str, str]) -> Model:
    """The body as a model. Raises RequestError.

    unsupported: top-level field -> rule; a value they may not have gets the code unsupported_parameter.
    """
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        # `from None`: pydantic's own message quotes the prompt.
        raise _refused(error.errors(include_url=False), unsupported) from None


def _refused(errors: list[ErrorDetails], unsupported: Mapping[str, str]) -> RequestError:
    # Each alternative of a union has its own error: the deepest is of the one that was meant.
    error = max(errors, key=lambda error: len(error["loc"]))
    kind, path, value = error["type"], _fields(error["loc"]), error["input"]
    rule = unsupported.get(str(path[0])) or RULES.get(kind) or error["msg"].removeprefix("Input ")
    if kind == "union_tag_invalid":
        value, rule = error["ctx"]["tag"], f"should be {error['ctx']['expected_tags']}"
    if kind.startswith("union_tag"):
        path.append("type")
    foreign = path[0] in unsupported or (path[-1] == "type" and kind in ("union_tag_invalid", "literal_error"))
    got = "" if rule == "is required" else f", got {_shown(path[-1], value)}"
    message = f"{'.'.join(map(str, path))}: {rule}{got}"
    return RequestError(message, code="unsupported_parameter" if foreign else "invalid_request")


def _fields(path: tuple[str | int, ...]) -> list[str | int]:
    """The path as the caller knows it: positions and names of fields."""
    fields = [part for part in path if isinstance(part, int) or not (part in TYPE_TAGS or "[" in part)]
    return [part for part in fields[:-1] if part not in BLOCK_TAGS] + fields[-1:]


def _shown(field: str | int, value: object) -> str:
    """A value as an error may show it: numbers and keywords as they are, all else by its size."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:MAX_QUOTED_CHARACTERS]
    if isinstance(value, str) and field in QUOTED_FIELDS:
        return repr(value[:MAX_QUOTED_CHARACTERS])
    return _shape(value)


def _shape(value: object) -> str:
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else repr(value)[:MAX_QUOTED_CHARACTERS]
