"""The ledger's SQLite file: its tables, and how it is opened, made and brought up from an older schema.

PRAGMA user_version is the schema's number; 0 with a table `accounts` is the schema before it was counted.
"""

import json
import sqlite3
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from seqroute_ray.core.errors import ConfigError

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0  # how long the first opening of a file by another process, and its migration, are waited for

_SCHEMA = (
    """CREATE TABLE accounts (
        session_id TEXT PRIMARY KEY,
        budget_nusd INTEGER NOT NULL,
        spent_nusd INTEGER NOT NULL DEFAULT 0,
        reserved_nusd INTEGER NOT NULL DEFAULT 0,
        overshoot_nusd INTEGER NOT NULL DEFAULT 0,
        num_turns INTEGER NOT NULL DEFAULT 0,
        summary_sum BLOB NOT NULL DEFAULT x'', -- float64, little-endian
        latest TEXT NOT NULL DEFAULT '{}', -- JSON
        closed INTEGER NOT NULL DEFAULT 0,
        log_number INTEGER -- of the last change of the session's decision log; null: none
    ) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX accounts_by_log_number ON accounts (log_number) WHERE log_number IS NOT NULL",
    """CREATE TABLE attempts (
        attempt_id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL,
        model TEXT NOT NULL,
        amount_nusd INTEGER NOT NULL,
        lease_until_s REAL NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released', 'expired')),
        cost_nusd INTEGER NOT NULL DEFAULT 0,
        decision_id TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    "CREATE INDEX attempts_by_session ON attempts (session_id)",
    "CREATE INDEX open_attempts_by_lease ON attempts (lease_until_s) WHERE state = 'reserved'",
    """CREATE TABLE entries (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        attempt_id TEXT NOT NULL,
        budget_nusd INTEGER NOT NULL,
        spent_nusd INTEGER NOT NULL,
        reserved_nusd INTEGER NOT NULL,
        overshoot_nusd INTEGER NOT NULL,
        at_s REAL NOT NULL
    )""",
    "CREATE INDEX entries_by_session ON entries (session_id)",
    "CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END",
    "CREATE TRIGGER entries_remain BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END",
    """CREATE TABLE decisions (
        decision_id TEXT NOT NULL UNIQUE,
        session_id TEXT NOT NULL,
        turn INTEGER NOT NULL,
        attempt_id TEXT NOT NULL,
        settled_nusd INTEGER NOT NULL, -- the attempt's cost then
        owner TEXT NOT NULL,
        at_s REAL NOT NULL,
        record TEXT NOT NULL, -- JSON
        embedding BLOB NOT NULL,
        UNIQUE (session_id, turn)
    )""",
    """CREATE TABLE feedback (
        target TEXT NOT NULL,
        judge TEXT NOT NULL,
        score REAL NOT NULL,
        at_s REAL NOT NULL,
        owner TEXT NOT NULL,
        PRIMARY KEY (target, judge)
    ) WITHOUT ROWID""",
    """CREATE TABLE answers (
        session_id TEXT NOT NULL,
        key TEXT NOT NULL,
        body_hash TEXT NOT NULL,
        lease_until_s REAL NOT NULL,
        at_s REAL NOT NULL,
        status INTEGER, -- null: in flight
        headers TEXT, -- JSON
        body BLOB,
        num_bytes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (session_id, key)
    )""",
    "CREATE INDEX answers_by_age ON answers (at_s, num_bytes)",
)


def open_file(path: Path) -> sqlite3.Connection:
    """A connection for the writer thread; the file is made or brought up to date. Raises ConfigError.

    Several processes may do so at once.
    """
    if str(path) == ":memory:":
        raise ConfigError("a ledger needs a file: one in memory is lost with its process")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(path)
        _switch_to_wal(db)
        db.execute("PRAGMA synchronous = FULL")  # what was committed survives a loss of power
        _bring_up_to_date(db, path)
        db.execute("PRAGMA busy_timeout = 0")  # the writer waits in its own way
    except (OSError, sqlite3.DatabaseError) as error:
        raise ConfigError(f"ledger {path}: not a usable SQLite file ({error}); name a file on a local disk") from error
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A second connection to a file of open_file."""
    db = _connect(path)
    db.execute("PRAGMA query_only = ON")
    return db


def pack_doubles(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpack_doubles(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


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


def _bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    """Make or migrate the tables, in one transaction. Raises ConfigError on a schema of a newer release."""
    db.execute("BEGIN IMMEDIATE")
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"ledger {path}: its schema is version {version}, this release knows up to {SCHEMA_VERSION}; "
                "use the release that wrote it, or a newer one"
            )
        if version == 0:
            _make_tables(db)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _make_tables(db: sqlite3.Connection) -> None:
    uncounted = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'reservations'").fetchone() is not None
    if uncounted:
        db.execute("ALTER TABLE accounts RENAME TO old_accounts")
    for statement in _SCHEMA:
        db.execute(statement)
    if uncounted:
        _take_over(db)


def _take_over(db: sqlite3.Connection) -> None:
    """Accounts and reservations of the uncounted schema: one opening entry an account, with all its counters.

    What was still reserved then had no lease: it ran out when the reservation was made, so the reaper charges it.
    """
    for session_id, budget, spent, reserved, overshoot, context in db.execute(
        "SELECT session_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, context FROM old_accounts"
    ).fetchall():
        remembered = json.loads(context)
        counters = (budget, spent, reserved, overshoot)
        db.execute(
            "INSERT INTO accounts (session_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, num_turns, "
            "summary_sum) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session_id, *counters, remembered.get("num_turns", 0), pack_doubles(remembered.get("summary_sum", []))),
        )
        db.execute(
            "INSERT INTO entries (session_id, kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, "
            "overshoot_nusd, at_s) VALUES (?, 'open', '', ?, ?, ?, ?, ?)",
            (session_id, *counters, time.time()),
        )
    db.execute(
        "INSERT INTO attempts (attempt_id, session_id, model, amount_nusd, lease_until_s, state, cost_nusd) "
        "SELECT id, session_id, '', amount_nusd, created_at, state, coalesce(cost_nusd, 0) FROM reservations"
    )
    db.execute("DROP TABLE reservations")
    db.execute("DROP TABLE old_accounts")
