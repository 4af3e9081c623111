"""What the Redis ledger reads: keys of one moment by MULTI, pages of the indexes."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio.client import Pipeline

from seqroute_ray.core.ledger import Account, Attempt, Books, Entry, LoggedTurn, SessionLog
from seqroute_ray.core.ledger_rules import unknown_attempt, unknown_decision, unknown_session
from seqroute_ray.serving.ledgers.redis_client import RedisClient
from seqroute_ray.serving.ledgers.redis_rows import (
    account_of,
    attempt_of,
    attempt_of_decision,
    entry_of,
    feedback_of,
    logged_turn_of,
)
from seqroute_ray.serving.ledgers.redis_scripts import ACCOUNT_FIELDS

_FROM_FIRST_TO_LAST = (0, -1)


async def account_in(client: RedisClient, session_id: str) -> Account:
    key = client.key("account", session_id)
    fields = await client.ask("HMGET", key, *ACCOUNT_FIELDS)
    return _account(session_id, fields)


async def entries_in(client: RedisClient, session_id: str) -> list[Entry]:
    key = client.key("entries", session_id)
    entries = await client.ask("LRANGE", key, *_FROM_FIRST_TO_LAST)
    return [entry_of(session_id, packed) for packed in entries]


async def books_in(client: RedisClient, session_id: str) -> Books:
    """Raises LedgerError on an unknown session."""
    fields, attempts, entries = await _at_once(
        client,
        ("HMGET", client.key("account", session_id), *ACCOUNT_FIELDS),
        ("HGETALL", client.key("attempts", session_id)),
        ("LRANGE", client.key("entries", session_id), *_FROM_FIRST_TO_LAST),
    )
    return Books(
        account=_account(session_id, fields),
        attempts=[attempt_of(session_id, attempt_id.decode(), packed) for attempt_id, packed in attempts.items()],
        entries=[entry_of(session_id, packed) for packed in entries],
    )


async def attempt_in(client: RedisClient, attempt_id: str) -> Attempt:
    """Raises LedgerError when it is unknown."""
    home = await home_of(client, "attempt_sessions", attempt_id)
    if home is None:
        raise unknown_attempt(attempt_id)
    key = client.key("attempts", home)
    packed = await client.ask("HGET", key, attempt_id)
    return attempt_of(home, attempt_id, packed)


async def decision_in(client: RedisClient, decision_id: str) -> dict[str, Any]:
    """Raises LedgerError when it is unknown."""
    home = await home_of(client, "decision_sessions", decision_id)
    if home is None:
        raise unknown_decision(decision_id)
    decision, feedback = await _at_once(
        client,
        ("HGET", client.key("decisions", home), decision_id),
        ("HGETALL", client.key("feedback", home)),
    )
    attempts, attempt_id = client.key("attempts", home), attempt_of_decision(decision)
    attempt = await client.ask("HGET", attempts, attempt_id)
    return logged_turn_of(home, decision_id, decision, attempt, b"", feedback).record


async def session_log_in(client: RedisClient, session_id: str) -> SessionLog:
    """Raises LedgerError on an unknown session."""
    names = ("decisions", "attempts", "embeddings", "feedback")
    fields, turns, *hashes = await _at_once(
        client,
        ("HMGET", client.key("account", session_id), *ACCOUNT_FIELDS),
        ("LRANGE", client.key("turns", session_id), *_FROM_FIRST_TO_LAST),
        *(("HGETALL", client.key(name, session_id)) for name in names),
    )
    _account(session_id, fields)
    return SessionLog(
        session_id=session_id,
        turns=[_logged_turn(session_id, decision_id, hashes) for decision_id in turns],
        feedback=feedback_of(session_id, hashes[-1]),
    )


async def sessions_in(client: RedisClient, after: str, limit: int) -> list[str]:
    key = client.key("sessions", "")
    start = f"({after}" if after else "-"
    page = await client.ask("ZRANGEBYLEX", key, start, "+", "LIMIT", 0, limit)
    return [session_id.decode() for session_id in page]


async def changed_in(client: RedisClient, after: int, limit: int) -> list[tuple[int, str]]:
    key = client.key("changed", "")
    page = await client.patiently(
        lambda: client.redis.zrangebyscore(key, f"({after}", "+inf", start=0, num=limit, withscores=True)
    )
    return [(int(number), session_id.decode()) for session_id, number in page]


async def home_of(client: RedisClient, index: str, its_id: str) -> str | None:
    """The session of an attempt or a decision; None when the index has none."""
    key = client.key(index, "")
    home = await client.ask("HGET", key, its_id)
    return None if home is None else home.decode()


def _account(session_id: str, fields: Sequence[bytes | None]) -> Account:
    known = [field for field in fields if field is not None]
    if not known:
        raise unknown_session(session_id)
    return account_of(session_id, known)


def _logged_turn(session_id: str, decision_id: bytes, hashes: Sequence[Mapping[bytes, bytes]]) -> LoggedTurn:
    decisions, attempts, embeddings, feedback = hashes
    decision = decisions[decision_id]
    attempt = attempts[attempt_of_decision(decision).encode()]
    return logged_turn_of(session_id, decision_id.decode(), decision, attempt, embeddings[decision_id], feedback)


async def _at_once(client: RedisClient, *commands: tuple[str | int, ...]) -> list[Any]:
    """The answers of commands that see one state."""

    async def work() -> list[Any]:
        pipeline: Pipeline = client.redis.pipeline(transaction=True)
        async with pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute()
        return answers

    found: list[Any] = await client.patiently(work)
    return found
