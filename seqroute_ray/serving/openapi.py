"""What the OpenAPI page says of bodies and errors; the models that check requests are its source."""

from typing import Any

from pydantic import BaseModel

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def body_of(schema: type[BaseModel] | dict[str, str]) -> dict[str, Any]:
    """The `openapi_extra` of a route with this JSON body; a mapping names required fields and their types."""
    if isinstance(schema, dict):
        fields = {name: {"type": kind} for name, kind in schema.items()}
        described: dict[str, Any] = {
            "type": "object",
            "required": list(fields),
            "properties": fields,
            "additionalProperties": False,
        }
    else:
        described = schema.model_json_schema(ref_template="#/components/schemas/{model}")
        described = _inlined(described, described.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": described}}}}


def responses_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors that a route may answer with."""
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": "Refused", "content": content} for status in statuses}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references replaced by what they refer to."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}
