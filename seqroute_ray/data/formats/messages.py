"""The objects, messages and texts inside records of chat APIs."""

from seqroute_ray.data.formats.records import Record


def section(record: Record, name: str) -> Record:
    """The object in a field; empty where there is none."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def last_user_text(messages: object) -> str | None:
    """The last user message: its content, or the text parts of it; None when it has no text."""
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            return content_text(message.get("content"))
    return None


def content_text(content: object) -> str | None:
    """A message's content where it is a text, else its parts of type text, one a line; None when there are none."""
    if isinstance(content, str):
        return content or None
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str)) or None
