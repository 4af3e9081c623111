"""Rows of the ledger's SQLite file as accounts, attempts, entries and logs."""

import sqlite3
from typing import Any

from pydantic_core import from_json

from seqroute_ray.core.ledger import (
    Account,
    Attempt,
    AttemptState,
    Books,
    Change,
    Entry,
    Feedback,
    LoggedTurn,
    SessionLog,
)
from seqroute_ray.core.ledger_rules import unknown_attempt, unknown_decision, unknown_session
from seqroute_ray.serving.ledgers.records import StoredTurn, full_record
from seqroute_ray.serving.ledgers.sqlite_file import unpack_doubles

_ACCOUNT = (
    "SELECT session_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, num_turns, summary_sum, latest, closed "
    "FROM accounts WHERE session_id = ?"
)
_ATTEMPT = (
    "SELECT attempt_id, session_id, model, amount_nusd, lease_until_s, state, cost_nusd, decision_id FROM attempts "
)
_ENTRIES = (
    "SELECT session_id, kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, at_s FROM entries "
    "WHERE session_id = ? ORDER BY number"
)
_DECISION = (
    "SELECT decision_id, session_id, turn, owner, at_s, record, embedding, cost_nusd - settled_nusd AS correction_nusd "
    "FROM decisions JOIN attempts USING (attempt_id, session_id, decision_id) "
)
_FEEDBACK = "SELECT target, judge, score, at_s, owner FROM feedback WHERE target = ? ORDER BY at_s"


def account_of(db: sqlite3.Connection, session_id: str) -> Account:
    """Raises LedgerError on an unknown session."""
    row = db.execute(_ACCOUNT, (session_id,)).fetchone()
    if row is None:
        raise unknown_session(session_id)
    _, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, num_turns, summary_sum, latest, closed = row
    return Account(
        session_id=session_id,
        budget_nusd=budget_nusd,
        spent_nusd=spent_nusd,
        reserved_nusd=reserved_nusd,
        overshoot_nusd=overshoot_nusd,
        num_turns=num_turns,
        summary_sum=unpack_doubles(summary_sum),
        latest=from_json(latest),
        closed=bool(closed),
    )


def attempt_of(db: sqlite3.Connection, attempt_id: str, session_id: str | None = None) -> Attempt:
    """Raises LedgerError when it is unknown, or of another session than this."""
    row = db.execute(_ATTEMPT + "WHERE attempt_id = ?", (attempt_id,)).fetchone()
    if row is None or session_id not in (None, row[1]):
        raise unknown_attempt(attempt_id)
    return _attempt(row)


def overdue_attempts(db: sqlite3.Connection, now_s: float, max_attempts: int) -> list[Attempt]:
    """Open attempts whose lease ran out before now_s, the longest overdue first."""
    query = _ATTEMPT + "WHERE state = 'reserved' AND lease_until_s < ? ORDER BY lease_until_s LIMIT ?"
    return [_attempt(row) for row in db.execute(query, (now_s, max_attempts))]


def entries_of(db: sqlite3.Connection, session_id: str) -> list[Entry]:
    return [_entry(row) for row in db.execute(_ENTRIES, (session_id,))]


def books_of(db: sqlite3.Connection, session_id: str) -> Books:
    """Raises LedgerError on an unknown session."""
    attempts = db.execute(_ATTEMPT + "WHERE session_id = ?", (session_id,))
    return Books(
        account=account_of(db, session_id),
        attempts=[_attempt(row) for row in attempts],
        entries=entries_of(db, session_id),
    )


def decision_of(db: sqlite3.Connection, decision_id: str) -> dict[str, Any]:
    """Raises LedgerError when it is unknown."""
    row = db.execute(_DECISION + "WHERE decision_id = ?", (decision_id,)).fetchone()
    if row is None:
        raise unknown_decision(decision_id)
    return _logged_turn(db, row).record


def session_log_of(db: sqlite3.Connection, session_id: str) -> SessionLog:
    """Raises LedgerError on an unknown session."""
    account_of(db, session_id)
    turns = db.execute(_DECISION + "WHERE session_id = ? ORDER BY turn", (session_id,))
    return SessionLog(
        session_id=session_id,
        turns=[_logged_turn(db, row) for row in turns],
        feedback=_feedback_on(db, session_id),
    )


def _attempt(row: tuple[Any, ...]) -> Attempt:
    attempt_id, session_id, model, amount_nusd, lease_until_s, state, cost_nusd, decision_id = row
    return Attempt(
        attempt_id=attempt_id,
        session_id=session_id,
        model=model,
        amount_nusd=amount_nusd,
        lease_until_s=lease_until_s,
        state=AttemptState(state),
        cost_nusd=cost_nusd,
        decision_id=decision_id,
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    session_id, kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, at_s = row
    change = Change(
        budget_nusd=budget_nusd, spent_nusd=spent_nusd, reserved_nusd=reserved_nusd, overshoot_nusd=overshoot_nusd
    )
    return Entry(session_id=session_id, kind=kind, attempt_id=attempt_id, change=change, at_s=at_s)


def _logged_turn(db: sqlite3.Connection, row: tuple[Any, ...]) -> LoggedTurn:
    decision_id, session_id, turn, owner, at_s, record, embedding, correction_nusd = row
    stored = StoredTurn(decision_id, session_id, turn, owner, at_s, record, correction_nusd)
    return LoggedTurn(record=full_record(stored, _feedback_on(db, decision_id)), embedding=embedding)


def _feedback_on(db: sqlite3.Connection, target: str) -> list[Feedback]:
    rows = db.execute(_FEEDBACK, (target,))
    return [
        Feedback(target=target, judge=judge, score=score, at_s=at_s, owner=owner)
        for target, judge, score, at_s, owner in rows
    ]
