"""Ledgers of the schema before it was counted, as the first release wrote them."""

import json
import sqlite3
from pathlib import Path

SCHEMA = (
    """CREATE TABLE accounts (
        session_id TEXT PRIMARY KEY,
        budget_nusd INTEGER NOT NULL,
        spent_nusd INTEGER NOT NULL DEFAULT 0,
        reserved_nusd INTEGER NOT NULL DEFAULT 0,
        overshoot_nusd INTEGER NOT NULL DEFAULT 0,
        context TEXT NOT NULL DEFAULT '{}'
    )""",
    """CREATE TABLE reservations (
        id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES accounts (session_id),
        amount_nusd INTEGER NOT NULL,
        cost_nusd INTEGER,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released')),
        created_at REAL NOT NULL
    )""",
)


def write_old_ledger(path: Path) -> None:
    """A new session "new", and "s": budget 100, one turn of 30 on a reservation of 20, one released, 40 reserved."""
    context = json.dumps({"num_turns": 1, "summary_sum": [0.5, 0.25]})
    with sqlite3.connect(path) as db:
        for statement in SCHEMA:
            db.execute(statement)
        db.execute("INSERT INTO accounts (session_id, budget_nusd) VALUES ('new', 7)")
        db.execute("INSERT INTO accounts VALUES ('s', 100, 30, 40, 10, ?)", (context,))
        db.executemany(
            "INSERT INTO reservations VALUES (?, 's', ?, ?, ?, ?)",
            [("a", 20, 30, "settled", 1.0), ("b", 20, None, "released", 2.0), ("c", 40, None, "reserved", 3.0)],
        )
    db.close()
