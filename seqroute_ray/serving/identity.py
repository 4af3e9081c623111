"""Which session a request belongs to: named by its client, else recognised by how the session begins.

A session's name in the ledger is `OWNER:CLIENT'S NAME`, with the owner (the API key's id) percent-encoded: it has no
colon, so the first colon ends it, and no client can name a session of another key. A request that names no session
belongs to the session of its opening: no name never means no limit.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from pydantic_core import to_json

from seqroute_ray.serving.prompt_tokens import content_text
from seqroute_ray.serving.requests import RequestError, SessionHints

SESSION_HEADER = "x-session-id"  # ours, and OpenRouter's
CLIENT_HEADERS = (
    "x-claude-code-session-id",  # Claude Code since 2.1.86 (github.com/coder/aibridge/pull/241)
    "session-id",  # Codex CLI (github.com/openai/codex, codex-api/src/requests/headers.rs)
    "session_id",  # older Codex CLI
    "x-session-affinity",  # opencode (docs.llmgateway.io/features/sessions)
    "x-litellm-session-id",  # LiteLLM proxy (docs.litellm.ai/docs/proxy/request_headers)
)
BODY_FIELDS = (
    "litellm_session_id",  # LiteLLM proxy (docs.litellm.ai/docs/proxy/ui_logs_sessions)
    "session_id",  # OpenRouter (reference.langchain.com/python/langchain-openrouter)
)
METADATA_FIELDS = ("session_id", "litellm_session_id", "langfuse_session_id")  # LiteLLM; Langfuse's OpenAI client
CACHE_FIELD = "prompt_cache_key"  # OpenAI; Codex CLI puts its session here. It stays in the request
USER_FIELDS = ("user", "safety_identifier")  # a person, not a session: two persons never share an opening
MAX_CHARACTERS = 256
FINGERPRINT, OPENING = "fingerprint", "opening-"  # the source, and how such a session's name begins


class Identity(NamedTuple):
    """A request's session."""

    session_id: str  # in the ledger
    client_id: str  # as its owner names it; sent as x-session-id it names the same session
    source: str  # the header or field that named it, or "fingerprint"


def identify(owner: str, headers: Mapping[str, str], hints: SessionHints) -> Identity:
    """The session that a request belongs to; headers by lower-case name. Raises RequestError on an unusable id."""
    sent = [(name, headers[name]) for name in CLIENT_HEADERS if headers.get(name)]
    if SESSION_HEADER in headers:
        sent.insert(0, (SESSION_HEADER, headers[SESSION_HEADER]))
    named = [*sent, *hints.named]
    source, client_id = named[0] if named else (FINGERPRINT, OPENING + hints.fingerprint)
    check_client_id(source, client_id)
    return Identity(session_id=ledger_session_id(owner, client_id), client_id=client_id, source=source)


def ledger_session_id(owner: str, client_id: str) -> str:
    """The ledger's name of an owner's session; no two pairs share one."""
    return f"{quote(owner, safe='')}:{client_id}"


def split_session_id(session_id: str) -> tuple[str, str]:
    """(owner, client id) of a ledger's name."""
    owner, _, client_id = session_id.partition(":")
    return unquote(owner), client_id


def check_client_id(source: str, client_id: str) -> None:
    """Raises RequestError naming the header or field."""
    if not 0 < len(client_id) <= MAX_CHARACTERS:
        raise RequestError(f"{source}: must have 1 to {MAX_CHARACTERS} characters, got {len(client_id)}")
    if not client_id.isprintable() or client_id != client_id.strip():
        raise RequestError(f"{source}: must be printable, without spaces at its ends, got {client_id[:40]!r}")


def session_hints(body: Mapping[str, Any]) -> SessionHints:
    """What a valid chat completion body says of its session."""
    named = tuple(_named(body))
    return SessionHints(named=named, fingerprint="" if named else _fingerprint(body))


def without_session_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as they go upstream: providers refuse names of sessions that are meant for routers."""
    kept = {name: value for name, value in fields.items() if name not in BODY_FIELDS}
    if isinstance(metadata := kept.get("metadata"), dict):
        kept["metadata"] = {name: value for name, value in metadata.items() if name not in METADATA_FIELDS}
        if not kept["metadata"]:
            del kept["metadata"]
    return kept


def _named(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    metadata = body.get("metadata") or {}
    if session := _claude_code_session(metadata.get("user_id")):
        yield "metadata.user_id", session
    yield from ((name, body[name]) for name in BODY_FIELDS if body.get(name))
    for name in METADATA_FIELDS:
        if isinstance(value := metadata.get(name), str) and value:
            yield f"metadata.{name}", value
    if body.get(CACHE_FIELD):
        yield CACHE_FIELD, body[CACHE_FIELD]


def _claude_code_session(user_id: object) -> str:
    """The session part of Anthropic's metadata.user_id as Claude Code fills it; "" where it has none.

    Since 2.1.78 a JSON object with session_id, before `user_HASH_account_ID_session_UUID`
    (github.com/ding113/claude-code-hub/pull/939).
    """
    if not isinstance(user_id, str):
        return ""
    if user_id.startswith("{"):
        try:
            session = json.loads(user_id).get("session_id")
        except (ValueError, RecursionError):
            return ""
        return session if isinstance(session, str) else ""
    return user_id.rpartition("_session_")[2] if "_session_" in user_id else ""


def _fingerprint(body: Mapping[str, Any]) -> str:
    """sha256 of user, tools and all up to the first user message, as one JSON array: unambiguous.

    Of texts alone: clients move marks such as cache_control from message to message.
    """
    messages = body["messages"]
    first = next((at for at, message in enumerate(messages) if message["role"] == "user"), len(messages))
    begins = [(message["role"], content_text(message)) for message in messages[: first + 1]]
    opening = [*(body.get(name) for name in USER_FIELDS), body.get("tools"), begins]
    return hashlib.sha256(to_json(opening)).hexdigest()
