"""Format `trajectory`: JSON lines, one episode a line: steps, each answered by a model, and one score at the end.

session_id or task_id   the session; where both are there, task_id is the group: attempts at one task stay together
score                   final, in [0, 1]: the last turn's quality; the turns before it are not judged
steps                   [{"text" or "content", "model", "usage": {"prompt_tokens", "completion_tokens"} or "cost_usd"}]
"""

from collections.abc import Iterator

from seqroute_ray.core.storage import Location
from seqroute_ray.data.formats.messages import content_text, section
from seqroute_ray.data.formats.records import Numbered, Record, json_lines
from seqroute_ray.data.formats.rows import LogBlock, log_blocks


def read(path: Location) -> Iterator[LogBlock]:
    return log_blocks(path, (row for record in json_lines(path) for row in _turns(record)))


def _turns(record: Numbered) -> Iterator[Numbered]:
    """The rows of an episode; a bad episode is one row with the reason."""
    episode = record.fields
    session_id, task_id = episode.get("session_id"), episode.get("task_id")
    whole = {"session_id": session_id or task_id, "group_id": task_id if session_id else None}
    steps = episode.get("steps")
    reason = record.reason or _reason(episode)
    if reason or not isinstance(steps, list):
        yield Numbered(record.line, whole, reason)
        return
    for turn, step in enumerate(steps):
        quality = episode["score"] if turn == len(steps) - 1 else None
        yield Numbered(record.line, whole | _turn(step) | {"turn": turn, "quality": quality})


def _reason(episode: Record) -> str:
    steps = episode.get("steps")
    if episode.get("score") is None:
        return "score is missing; an episode has one in [0, 1]"
    if not (isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps)):
        return "steps must be a list of at least one {text, model, usage or cost_usd}"
    return ""


def _turn(step: Record) -> Record:
    usage = section(step, "usage")
    return {
        "text": content_text(step.get("text")) or content_text(step.get("content")),
        "model": step.get("model"),
        "cost_usd": step.get("cost_usd"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }
