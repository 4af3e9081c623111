"""The embedded ledger: one SQLite file, safe from many tasks, threads and processes of one machine.

Every change is part of one `BEGIN IMMEDIATE` transaction, so compare-and-reserve is atomic between processes; WAL with
synchronous=FULL keeps what was granted through a crash. Reads have a connection of their own and wait for nobody. One
object belongs to one event loop.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any, TypeVar

from seqroute_ray.core.errors import LedgerUnavailable, UnknownSessionError
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
from seqroute_ray.core.ledger_rules import opening
from seqroute_ray.serving.ledgers import sqlite_writes as writes
from seqroute_ray.serving.ledgers.group_commit import GroupCommit, Operation
from seqroute_ray.serving.ledgers.sqlite_answers import claim_key, disclaim_key, drop_some_answers, keep_answer
from seqroute_ray.serving.ledgers.sqlite_file import open_file, open_for_reading
from seqroute_ray.serving.ledgers.sqlite_rows import (
    account_of,
    attempt_of,
    books_of,
    decision_of,
    entries_of,
    overdue_attempts,
    session_log_of,
)

_PAGE = 50  # attempts that one operation expires: nobody should wait long for it

T = TypeVar("T")


class SqliteLedger:
    """core.ledger.Ledger on the file at `path`, which is made if it is not there. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._writer = GroupCommit(open_file(path))
        self._reader = open_for_reading(path)

    async def open(self, session_id: str, budget_nusd: int) -> Account:
        change = opening(session_id, budget_nusd)
        try:
            return await self.account(session_id)  # costs no commit
        except UnknownSessionError:
            return await self._writer.run(lambda db: writes.open_account(db, session_id, change))

    async def account(self, session_id: str) -> Account:
        return self._read(lambda db: account_of(db, session_id))

    async def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        return await self._writer.run(lambda db: writes.raise_budget(db, session_id, budget_nusd))

    async def close_session(self, session_id: str) -> Account:
        return await self._writer.run(lambda db: writes.close_account(db, session_id))

    async def reserve(self, session_id: str, attempt_id: str, model: str, amount_nusd: int, lease_s: float) -> Account:
        lease_until_s = time.time() + lease_s
        attempt = Attempt(
            attempt_id=attempt_id,
            session_id=session_id,
            model=model,
            amount_nusd=amount_nusd,
            lease_until_s=lease_until_s,
        )
        return await self._writer.run(lambda db: writes.reserve(db, attempt))

    async def settle(
        self,
        session_id: str,
        attempt_id: str,
        cost_nusd: int,
        *,
        turn: TurnRecord | None = None,
        answer: tuple[str, StoredAnswer] | None = None,
    ) -> Account:
        def work(db: sqlite3.Connection) -> Account:
            account = writes.settle(db, attempt_of(db, attempt_id, session_id), cost_nusd, turn)
            if answer is not None:
                keep_answer(db, session_id, *answer)
            return account

        return await self._writer.run(work)

    async def release(self, session_id: str, attempt_id: str) -> Account:
        return await self._writer.run(lambda db: writes.release(db, attempt_of(db, attempt_id, session_id)))

    async def correct(self, session_id: str, attempt_id: str, cost_nusd: int) -> Account:
        return await self._writer.run(lambda db: writes.correct(db, attempt_of(db, attempt_id, session_id), cost_nusd))

    async def expire(self, now_s: float, max_attempts: int = 1000) -> list[Attempt]:
        if not self._read(lambda db: overdue_attempts(db, now_s, 1)):
            return []  # most of the time: costs no commit
        expired: list[Attempt] = []
        while num_wanted := min(_PAGE, max_attempts - len(expired)):
            page = await self._writer.run(lambda db: writes.expire_some(db, now_s, num_wanted))
            expired += page
            if len(page) < num_wanted:
                break
        return expired

    async def claim(
        self, session_id: str, key: str, body_hash: str, lease_s: float
    ) -> tuple[Claim, StoredAnswer | None]:
        now_s = time.time()
        return await self._writer.run(lambda db: claim_key(db, (session_id, key), body_hash, now_s, lease_s))

    async def disclaim(self, session_id: str, key: str) -> None:
        await self._writer.run(lambda db: disclaim_key(db, session_id, key))

    async def decision(self, decision_id: str) -> dict[str, Any]:
        return self._read_together(lambda db: decision_of(db, decision_id))

    async def add_feedback(self, feedback: Feedback) -> None:
        await self._writer.run(lambda db: writes.add_feedback(db, feedback))

    async def entries(self, session_id: str) -> list[Entry]:
        return self._read(lambda db: entries_of(db, session_id))

    async def books(self, session_id: str) -> Books:
        return self._read_together(lambda db: books_of(db, session_id))

    async def attempt(self, attempt_id: str) -> Attempt:
        return self._read(lambda db: attempt_of(db, attempt_id))

    async def sessions(self, after: str, limit: int) -> list[str]:
        query = "SELECT session_id FROM accounts WHERE session_id > ? ORDER BY session_id LIMIT ?"
        return self._read(lambda db: [row[0] for row in db.execute(query, (after, limit))])

    async def changed(self, after: int, limit: int) -> list[tuple[int, str]]:
        query = "SELECT log_number, session_id FROM accounts WHERE log_number > ? ORDER BY log_number LIMIT ?"
        return self._read(lambda db: db.execute(query, (after, limit)).fetchall())

    async def session_log(self, session_id: str) -> SessionLog:
        return self._read_together(lambda db: session_log_of(db, session_id))

    async def prune(self, now_s: float, *, answers_max_age_s: float, answers_max_bytes: int) -> int:
        num_dropped = 0
        while page := await self._writer.run(
            lambda db: drop_some_answers(db, now_s, answers_max_age_s, answers_max_bytes)
        ):
            num_dropped += page
        return num_dropped

    async def ping(self) -> None:
        self._read(lambda db: db.execute("SELECT 1 FROM accounts LIMIT 1").fetchone())

    async def close(self) -> None:
        await self._writer.close()
        self._reader.close()

    def _read(self, query: Operation[T]) -> T:
        """What a query of one statement finds. Raises LedgerUnavailable."""
        try:
            return query(self._reader)
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"the ledger's file cannot be read ({error})") from error

    def _read_together(self, query: Operation[T]) -> T:
        """What several statements find in the file as it is at one moment. Raises LedgerUnavailable."""

        def in_one_transaction(db: sqlite3.Connection) -> T:
            db.execute("BEGIN")
            try:
                return query(db)
            finally:
                db.execute("COMMIT")

        return self._read(in_one_transaction)
