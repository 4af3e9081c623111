"""The embedded ledger: accounts and reservations in one SQLite file, safe from many threads and processes.

Every change is one `BEGIN IMMEDIATE` transaction, so compare-and-reserve is atomic between processes; WAL with
synchronous=FULL keeps what was granted through a crash. Amounts are integer nano-dollars.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from seqroute_ray.core.errors import ConfigError, LedgerError
from seqroute_ray.core.ledger import Account, exhausted

BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another process's transaction; one takes about a millisecond
MAX_BUDGET_NUSD = 10**18  # a thousand million USD: sums stay far inside SQLite's 64-bit integers

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS accounts (
        session_id TEXT PRIMARY KEY,
        budget_nusd INTEGER NOT NULL,
        spent_nusd INTEGER NOT NULL DEFAULT 0,
        reserved_nusd INTEGER NOT NULL DEFAULT 0,
        overshoot_nusd INTEGER NOT NULL DEFAULT 0,
        context TEXT NOT NULL DEFAULT '{}'
    )""",
    # One row an attempt; created_at (seconds since 1970) tells an orphan of a killed replica from a running call.
    """CREATE TABLE IF NOT EXISTS reservations (
        id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES accounts (session_id),
        amount_nusd INTEGER NOT NULL,
        cost_nusd INTEGER,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released')),
        created_at REAL NOT NULL
    )""",
)
_ACCOUNT = "SELECT session_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, context FROM accounts"


class SqliteLedger:
    """core.ledger.Ledger on the file at `path`, which is made if it is not there. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._lock = Lock()  # one connection, one transaction at a time in this process
        self._db = _connect(path)
        with self._transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)

    def open(self, session_id: str, budget_nusd: int) -> Account:
        """The account, made with this budget if it is new; an existing account keeps its own."""
        _check_budget(session_id, budget_nusd)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO accounts (session_id, budget_nusd) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (session_id, budget_nusd),
            )
            return _account(db, session_id)

    def account(self, session_id: str) -> Account:
        """The account as it stands. Raises LedgerError on an unknown session."""
        with self._lock:
            return _account(self._db, session_id)

    def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        """Give a session more money; it goes on where it stopped. Raises ConfigError on a lower budget."""
        _check_budget(session_id, budget_nusd)
        with self._transaction() as db:
            account = _account(db, session_id)
            if budget_nusd < account.budget_nusd:
                raise ConfigError(
                    f"session {session_id!r}: a budget can only be raised; it is ${account.budget_nusd / 1e9:.9f}, "
                    f"asked for ${budget_nusd / 1e9:.9f}"
                )
            db.execute("UPDATE accounts SET budget_nusd = ? WHERE session_id = ?", (budget_nusd, session_id))
            return _account(db, session_id)

    def reserve(self, session_id: str, amount_nusd: int) -> str:
        """A reservation id. Raises BudgetExhaustedError when the amount does not fit, LedgerError when no such session.

        Nothing (a free model) always fits, also in a session that a provider's bill has carried over its budget.
        """
        _check_amount(amount_nusd)
        reservation_id = uuid.uuid4().hex
        with self._transaction() as db:
            account = _account(db, session_id)
            if amount_nusd > account.remaining_nusd:
                raise exhausted(account, amount_nusd)
            db.execute(
                "INSERT INTO reservations (id, session_id, amount_nusd, state, created_at) VALUES (?, ?, ?, ?, ?)",
                (reservation_id, session_id, amount_nusd, "reserved", time.time()),
            )
            db.execute(
                "UPDATE accounts SET reserved_nusd = reserved_nusd + ? WHERE session_id = ?", (amount_nusd, session_id)
            )
        return reservation_id

    def settle(self, reservation_id: str, cost_nusd: int, context: dict[str, Any]) -> Account:
        """Book the true cost and the new context. Raises LedgerError when already settled or released."""
        _check_amount(cost_nusd)
        with self._transaction() as db:
            session_id, amount_nusd = _finish(db, reservation_id, "settled", cost_nusd)
            db.execute(
                "UPDATE accounts SET spent_nusd = spent_nusd + ?, reserved_nusd = reserved_nusd - ?, "
                "overshoot_nusd = overshoot_nusd + ?, context = ? WHERE session_id = ?",
                (cost_nusd, amount_nusd, max(0, cost_nusd - amount_nusd), json.dumps(context), session_id),
            )
            return _account(db, session_id)

    def release(self, reservation_id: str) -> Account:
        """Give the reservation back. Raises LedgerError when already settled or released."""
        with self._transaction() as db:
            session_id, amount_nusd = _finish(db, reservation_id, "released", None)
            db.execute(
                "UPDATE accounts SET reserved_nusd = reserved_nusd - ? WHERE session_id = ?", (amount_nusd, session_id)
            )
            return _account(db, session_id)

    def close(self) -> None:
        """Release the file; the ledger cannot be used afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    """An autocommit connection in WAL mode. Raises ConfigError when the path cannot hold a database."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        _switch_to_wal(db)
        db.execute("PRAGMA synchronous = FULL")
    except (OSError, sqlite3.DatabaseError) as error:
        raise ConfigError(f"ledger {path}: not a usable SQLite file ({error}); name a file on a local disk") from error
    return db


def _switch_to_wal(db: sqlite3.Connection) -> None:
    """Set WAL mode. Two processes that make one file at once collide here without the busy timeout: try again."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)


def _account(db: sqlite3.Connection, session_id: str) -> Account:
    row = db.execute(f"{_ACCOUNT} WHERE session_id = ?", (session_id,)).fetchone()
    if row is None:
        raise LedgerError(f"session {session_id!r} is unknown; open it first")
    *fields, context = row
    return Account(*(*fields, json.loads(context)))


def _finish(db: sqlite3.Connection, reservation_id: str, state: str, cost_nusd: int | None) -> tuple[str, int]:
    """End an open reservation; its session and amount. Raises LedgerError when there is none to end."""
    row = db.execute(
        "SELECT session_id, amount_nusd, state FROM reservations WHERE id = ?", (reservation_id,)
    ).fetchone()
    if row is None:
        raise LedgerError(f"reservation {reservation_id!r} is unknown; it cannot be {state}")
    session_id, amount_nusd, old_state = row
    if old_state != "reserved":
        raise LedgerError(f"reservation {reservation_id!r} is already {old_state}; it cannot be {state} again")
    db.execute("UPDATE reservations SET state = ?, cost_nusd = ? WHERE id = ?", (state, cost_nusd, reservation_id))
    return session_id, amount_nusd


def _check_budget(session_id: str, budget_nusd: int) -> None:
    if not 0 < budget_nusd <= MAX_BUDGET_NUSD:
        raise ConfigError(
            f"session {session_id!r}: a budget must be > $0 and <= ${MAX_BUDGET_NUSD / 1e9:.0f}, "
            f"got ${budget_nusd / 1e9:.9f}"
        )


def _check_amount(amount_nusd: int) -> None:
    if not 0 <= amount_nusd <= MAX_BUDGET_NUSD:
        raise LedgerError(f"an amount must be in [0, {MAX_BUDGET_NUSD}] nano-dollars, got {amount_nusd}")
