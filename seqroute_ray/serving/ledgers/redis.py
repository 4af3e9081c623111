"""The ledger for many machines: a Redis with an append-only file, every change one atomic script.

A call whose connection breaks is repeated: each script finds out that it was done already. No key ever expires by
itself: a forgotten account would be a new budget.
"""

import json
import time
from typing import Any

from seqroute_ray.core.errors import LedgerError, UnknownSessionError
from seqroute_ray.core.ledger import (
    Account,
    Attempt,
    Books,
    Claim,
    Entry,
    Feedback,
    SessionLog,
    StoredAnswer,
    TurnRecord,
)
from seqroute_ray.core.ledger_rules import (
    check_amount,
    check_budget,
    correcting,
    opening,
    raising,
    releasing,
    repeats_reserving,
    repeats_settling,
    reserving,
    settling,
    unknown_attempt,
    unknown_session,
    unknown_target,
    used_decision,
)
from seqroute_ray.serving.ledgers import redis_scripts as scripts
from seqroute_ray.serving.ledgers.redis_answers import claim_key, disclaim_key, prune_answers
from seqroute_ray.serving.ledgers.redis_client import RedisClient
from seqroute_ray.serving.ledgers.redis_reads import (
    account_in,
    attempt_in,
    books_in,
    changed_in,
    decision_in,
    entries_in,
    home_of,
    session_log_in,
    sessions_in,
)
from seqroute_ray.serving.ledgers.redis_rows import account_of, attempt_of, pack_feedback


class RedisLedger:
    """core.ledger.Ledger in Redis; made by `connect`."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, url: str, password: str | None = None) -> "RedisLedger":
        """Raises ConfigError on a Redis that may forget, LedgerUnavailable when it does not answer."""
        client = RedisClient(url, password)
        try:
            await client.check()
        except BaseException:
            await client.close()
            raise
        return cls(client)

    async def open(self, session_id: str, budget_nusd: int) -> Account:
        opening(session_id, budget_nusd)
        _, fields = await self._client.run(scripts.OPEN, session_id, session_id, budget_nusd, time.time())
        return account_of(session_id, fields)

    async def account(self, session_id: str) -> Account:
        return await account_in(self._client, session_id)

    async def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        check_budget(session_id, budget_nusd)
        status, *rest = await self._client.run(scripts.RAISE, session_id, budget_nusd, time.time())
        if status == b"unknown":
            raise unknown_session(session_id)
        account = account_of(session_id, rest[0])
        if status == b"refused":
            raising(account, budget_nusd)
        return account

    async def close_session(self, session_id: str) -> Account:
        status, *rest = await self._client.run(scripts.CLOSE, session_id, time.time())
        if status == b"unknown":
            raise unknown_session(session_id)
        return account_of(session_id, rest[0])

    async def reserve(self, session_id: str, attempt_id: str, model: str, amount_nusd: int, lease_s: float) -> Account:
        check_amount(amount_nusd)
        now_s = time.time()
        args = (session_id, attempt_id, model, amount_nusd, now_s + lease_s, now_s)
        status, *rest = await self._client.run(scripts.RESERVE, session_id, *args)
        if status == b"unknown":
            raise unknown_session(session_id)
        if status == b"elsewhere":
            raise LedgerError(f"attempt {attempt_id!r} belongs to another session; give every attempt an id of its own")
        account = account_of(session_id, rest[0])
        if status == b"known":
            repeats_reserving(attempt_of(session_id, attempt_id, rest[1]), session_id, model, amount_nusd)
        elif status == b"refused":
            reserving(account, amount_nusd)
        return account

    async def settle(
        self,
        session_id: str,
        attempt_id: str,
        cost_nusd: int,
        *,
        turn: TurnRecord | None = None,
        answer: tuple[str, StoredAnswer] | None = None,
    ) -> Account:
        check_amount(cost_nusd)
        args = (session_id, attempt_id, cost_nusd, time.time(), *_turn_and_answer(turn, answer))
        status, *rest = await self._client.run(scripts.SETTLE, session_id, *args)
        if status == b"used" and turn is not None:
            raise used_decision(turn.decision_id)
        account, attempt = _after(status, rest, session_id, attempt_id)
        if attempt is not None and not repeats_settling(attempt, cost_nusd, turn):
            settling(attempt, cost_nusd)
        return account

    async def release(self, session_id: str, attempt_id: str) -> Account:
        status, *rest = await self._client.run(scripts.RELEASE, session_id, attempt_id, time.time())
        account, attempt = _after(status, rest, session_id, attempt_id)
        if attempt is not None:
            releasing(attempt)
        return account

    async def correct(self, session_id: str, attempt_id: str, cost_nusd: int) -> Account:
        check_amount(cost_nusd)
        args = (session_id, attempt_id, cost_nusd, time.time())
        status, *rest = await self._client.run(scripts.CORRECT, session_id, *args)
        account, attempt = _after(status, rest, session_id, attempt_id)
        if attempt is not None:
            correcting(attempt, cost_nusd)
        return account

    async def expire(self, now_s: float, max_attempts: int = 1000) -> list[Attempt]:
        leases = self._client.key("leases", "")
        overdue = await self._client.ask("ZRANGEBYSCORE", leases, "-inf", f"({now_s!r}", "LIMIT", 0, max_attempts)
        tried = [await self._expire(attempt_id.decode(), now_s) for attempt_id in overdue]
        return [attempt for attempt in tried if attempt is not None]

    async def claim(
        self, session_id: str, key: str, body_hash: str, lease_s: float
    ) -> tuple[Claim, StoredAnswer | None]:
        return await claim_key(self._client, session_id, key, body_hash, lease_s)

    async def disclaim(self, session_id: str, key: str) -> None:
        await disclaim_key(self._client, session_id, key)

    async def decision(self, decision_id: str) -> dict[str, Any]:
        return await decision_in(self._client, decision_id)

    async def add_feedback(self, feedback: Feedback) -> None:
        session_id = await home_of(self._client, "decision_sessions", feedback.target)
        if session_id is None:
            session_id = feedback.target
            await self._known_target(session_id)
        await self._client.run(scripts.FEEDBACK, session_id, session_id, *pack_feedback(feedback))

    async def entries(self, session_id: str) -> list[Entry]:
        return await entries_in(self._client, session_id)

    async def books(self, session_id: str) -> Books:
        return await books_in(self._client, session_id)

    async def attempt(self, attempt_id: str) -> Attempt:
        return await attempt_in(self._client, attempt_id)

    async def sessions(self, after: str, limit: int) -> list[str]:
        return await sessions_in(self._client, after, limit)

    async def changed(self, after: int, limit: int) -> list[tuple[int, str]]:
        return await changed_in(self._client, after, limit)

    async def session_log(self, session_id: str) -> SessionLog:
        return await session_log_in(self._client, session_id)

    async def prune(self, now_s: float, *, answers_max_age_s: float, answers_max_bytes: int) -> int:
        return await prune_answers(self._client, now_s, answers_max_age_s, answers_max_bytes)

    async def ping(self) -> None:
        await self._client.ask("PING")

    async def close(self) -> None:
        await self._client.close()

    async def _expire(self, attempt_id: str, now_s: float) -> Attempt | None:
        """The attempt, if this call charged it."""
        session_id = await home_of(self._client, "attempt_sessions", attempt_id)
        if session_id is None:
            return None
        packed = await self._client.run(scripts.EXPIRE, session_id, attempt_id, now_s, time.time())
        return None if packed is None else attempt_of(session_id, attempt_id, packed)

    async def _known_target(self, session_id: str) -> None:
        try:
            await self.account(session_id)
        except UnknownSessionError:
            raise unknown_target(session_id) from None


def _after(status: bytes, rest: list[Any], session_id: str, attempt_id: str) -> tuple[Account, Attempt | None]:
    """The account, and the attempt if it refused the change. Raises LedgerError when it is unknown."""
    if status == b"unknown":
        raise unknown_attempt(attempt_id)
    account = account_of(session_id, rest[0])
    return account, attempt_of(session_id, attempt_id, rest[1]) if status == b"refused" else None


def _turn_and_answer(turn: TurnRecord | None, answer: tuple[str, StoredAnswer] | None) -> list[str | bytes | int]:
    """Arguments of the script that settles, from the decision's id on."""
    decision: list[str | bytes] = [""] * 5
    if turn is not None:
        summary = ",".join(map(repr, turn.summary))
        decision = [summary, json.dumps(turn.latest), turn.owner, json.dumps(turn.record), turn.embedding]
    key, stored = answer or ("", None)
    kept: list[str | bytes | int] = [stored.status, json.dumps(stored.headers), stored.body] if stored else []
    return [turn.decision_id if turn else "", key, *decision, *kept]
