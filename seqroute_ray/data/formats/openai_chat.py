"""Format `openai-chat`: JSON lines, one OpenAI chat completion a line, with the request that it answers.

The three shapes, of which fields may be mixed:

gateway   {"session_id", "timestamp", "request": {"messages", ...}, "response": {chat completion}}
batch     {"custom_id", "metadata", "body": {"messages", ...}, "response": {"status_code", "body": {chat completion}}}:
          the lines of a Batch API input and output file with the same custom_id, joined
stored    {"id", "created", "model", "usage", "metadata", "messages", ...}: a stored chat completion with its messages

session   `session_id`, else `metadata.session_id`, else `user`, each of the line or of its request
time      `timestamp`, else `created`, of the line, else of the completion: Unix seconds or ISO 8601; UTC without zone
id        of the completion, else of the line, else `custom_id`: orders calls of one time
text      the last message of role user: its string, or the text parts of its list
model     of the completion, not of the request: the one that answered
tokens    `usage.prompt_tokens`, `usage.completion_tokens`
failed    `error` is not null, or `response.status_code` is 400 or more: left out
quality   none: bring judgements
"""

from collections.abc import Iterator

from seqroute_ray.core.storage import Location
from seqroute_ray.data.formats.calls import read_calls, time_us
from seqroute_ray.data.formats.messages import last_user_text, section
from seqroute_ray.data.formats.records import Record, json_lines
from seqroute_ray.data.formats.rows import LogBlock

_NEEDS = {
    "time_us": "no time: created or timestamp must be Unix seconds or an ISO 8601 time",
    "text": "no text: request.messages needs a last user message with text",
}


def read(path: Location) -> Iterator[LogBlock]:
    return read_calls(path, json_lines(path), _call, _is_failed, _NEEDS)


def _is_failed(record: Record) -> bool:
    status = section(record, "response").get("status_code")
    return record.get("error") is not None or (isinstance(status, int) and status >= 400)


def _call(record: Record) -> Record:
    request = section(record, "request") or section(record, "body") or record
    response = section(record, "response") or record
    completion = section(response, "body") or response
    usage = section(completion, "usage")
    time = _first(record.get("timestamp"), record.get("created"), completion.get("created"))
    return {
        "session_id": _session(record, request),
        "time_us": time_us(time),
        "call_id": _first(completion.get("id"), record.get("id"), record.get("custom_id")),
        "text": last_user_text(request.get("messages")),
        "model": completion.get("model"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }


def _session(record: Record, request: Record) -> object:
    ids = (record.get("session_id"), request.get("session_id"))
    in_metadata = (section(record, "metadata").get("session_id"), section(request, "metadata").get("session_id"))
    return _first(*ids, *in_metadata, record.get("user"), request.get("user"))


def _first(*values: object) -> object:
    return next((value for value in values if value is not None), None)
