"""Format `litellm`: spend logs of a LiteLLM proxy (table LiteLLM_SpendLogs) as a JSON array, JSON lines or Parquet.

session   `session_id`
time      `startTime`; calls of one time are ordered by `request_id`
text      the last message of role user in `messages`, else in `proxy_server_request`: lists, objects or JSON text.
          Both hold nothing unless the proxy has `store_prompts_in_spend_logs: true`
model     `model`
cost      `spend`; where it is 0 and `cache_hit` is not True, LiteLLM knew no price, and the catalog prices the tokens
tokens    `prompt_tokens`, `completion_tokens`
failed    `status` is failure: left out
quality   none: bring judgements
"""

import json
from collections.abc import Iterator

from seqroute_ray.core.storage import Location, suffix_of
from seqroute_ray.data.formats.calls import read_calls, time_us
from seqroute_ray.data.formats.messages import last_user_text
from seqroute_ray.data.formats.records import Record, json_records, parquet_records
from seqroute_ray.data.formats.rows import LogBlock

_COLUMNS = (
    "request_id",
    "session_id",
    "model",
    "spend",
    "prompt_tokens",
    "completion_tokens",
    "startTime",
    "messages",
    "proxy_server_request",
    "status",
    "cache_hit",
)
_NEEDS = {
    "time_us": "no time: startTime must be an ISO 8601 time",
    "text": "no text: messages has none; set store_prompts_in_spend_logs: true in the proxy's general_settings",
}


def read(path: Location) -> Iterator[LogBlock]:
    """Read by suffix. Raises DataError when it is no such file."""
    records = parquet_records(path, _COLUMNS) if suffix_of(path) == ".parquet" else json_records(path)
    return read_calls(path, records, _call, _is_failed, _NEEDS)


def _is_failed(record: Record) -> bool:
    return record.get("status") == "failure"


def _call(record: Record) -> Record:
    request = _parsed(record.get("proxy_server_request"))
    in_request = request.get("messages") if isinstance(request, dict) else None
    is_hit = str(record.get("cache_hit")).lower() == "true"  # LiteLLM writes a text
    return {
        "session_id": record.get("session_id"),
        "time_us": time_us(record.get("startTime")),
        "call_id": record.get("request_id"),
        "text": last_user_text(_parsed(record.get("messages"))) or last_user_text(in_request),
        "model": record.get("model"),
        "cost_usd": None if record.get("spend") == 0 and not is_hit else record.get("spend"),
        "prompt_tokens": record.get("prompt_tokens"),
        "completion_tokens": record.get("completion_tokens"),
    }


def _parsed(value: object) -> object:
    """A value out of its JSON text; what is no JSON is no message."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
