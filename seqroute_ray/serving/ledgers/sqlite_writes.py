"""What the SQLite ledger writes: each function is one operation in a transaction, by core.ledger_rules."""

import sqlite3
import time

from pydantic_core import to_json

from seqroute_ray.core.ledger import Account, Attempt, AttemptState, Change, Feedback, TurnRecord
from seqroute_ray.core.ledger_rules import (
    NO_CHANGE,
    correcting,
    expiring,
    raising,
    releasing,
    repeats_reserving,
    repeats_settling,
    reserving,
    settling,
    summed,
    unknown_target,
    used_decision,
)
from seqroute_ray.serving.ledgers.sqlite_file import pack_doubles
from seqroute_ray.serving.ledgers.sqlite_rows import account_of, attempt_of, overdue_attempts

_SET_COUNTERS = "budget_nusd = ?, spent_nusd = ?, reserved_nusd = ?, overshoot_nusd = ?"
# Gives a session the next number of the decision log. Only one transaction writes, so numbers are committed in order.
_NEXT = "log_number = (SELECT coalesce(max(log_number), 0) + 1 FROM accounts)"


def open_account(db: sqlite3.Connection, session_id: str, change: Change) -> Account:
    made = db.execute(
        "INSERT INTO accounts (session_id, budget_nusd) VALUES (?, 0) ON CONFLICT DO NOTHING", (session_id,)
    )
    account = account_of(db, session_id)
    return _book(db, account, "open", "", change) if made.rowcount else account


def raise_budget(db: sqlite3.Connection, session_id: str, budget_nusd: int) -> Account:
    account = account_of(db, session_id)
    return _book(db, account, "raise", "", raising(account, budget_nusd))


def close_account(db: sqlite3.Connection, session_id: str) -> Account:
    account = account_of(db, session_id)
    if account.closed:
        return account
    db.execute("UPDATE accounts SET closed = 1 WHERE session_id = ?", (session_id,))
    _append(db, session_id, "close", "", NO_CHANGE)
    return account._replace(closed=True)


def reserve(db: sqlite3.Connection, attempt: Attempt) -> Account:
    account = account_of(db, attempt.session_id)
    made = db.execute(
        "INSERT INTO attempts (attempt_id, session_id, model, amount_nusd, lease_until_s, state) "
        "VALUES (?, ?, ?, ?, ?, 'reserved') ON CONFLICT DO NOTHING",
        (attempt.attempt_id, attempt.session_id, attempt.model, attempt.amount_nusd, attempt.lease_until_s),
    )
    if not made.rowcount:
        known = attempt_of(db, attempt.attempt_id)
        repeats_reserving(known, attempt.session_id, attempt.model, attempt.amount_nusd)
        return account
    return _book(db, account, "reserve", attempt.attempt_id, reserving(account, attempt.amount_nusd))


def settle(db: sqlite3.Connection, attempt: Attempt, cost_nusd: int, turn: TurnRecord | None) -> Account:
    account = account_of(db, attempt.session_id)
    if repeats_settling(attempt, cost_nusd, turn):
        return account
    kind, change = settling(attempt, cost_nusd)
    decision_id = turn.decision_id if turn else ""
    _update(db, attempt._replace(state=AttemptState.SETTLED, cost_nusd=cost_nusd, decision_id=decision_id))
    if turn is not None:
        _log_turn(db, account, attempt.attempt_id, cost_nusd, turn)
    return _book(db, account, kind, attempt.attempt_id, change, turn)


def release(db: sqlite3.Connection, attempt: Attempt) -> Account:
    account = account_of(db, attempt.session_id)
    if attempt.state is AttemptState.RELEASED:
        return account
    change = releasing(attempt)
    _update(db, attempt._replace(state=AttemptState.RELEASED))
    return _book(db, account, "release", attempt.attempt_id, change)


def correct(db: sqlite3.Connection, attempt: Attempt, cost_nusd: int) -> Account:
    change = correcting(attempt, cost_nusd)
    _update(db, attempt._replace(cost_nusd=cost_nusd))
    if attempt.decision_id and change != NO_CHANGE:
        _number_log(db, attempt.session_id)
    return _book(db, account_of(db, attempt.session_id), "correct", attempt.attempt_id, change)


def expire_some(db: sqlite3.Connection, now_s: float, max_attempts: int) -> list[Attempt]:
    return [_expire(db, attempt) for attempt in overdue_attempts(db, now_s, max_attempts)]


def _expire(db: sqlite3.Connection, attempt: Attempt) -> Attempt:
    expired = attempt._replace(state=AttemptState.EXPIRED, cost_nusd=attempt.amount_nusd)
    _update(db, expired)
    _book(db, account_of(db, attempt.session_id), "expire", attempt.attempt_id, expiring(attempt))
    return expired


def _update(db: sqlite3.Connection, attempt: Attempt) -> None:
    db.execute(
        "UPDATE attempts SET state = ?, cost_nusd = ?, decision_id = ? WHERE attempt_id = ?",
        (attempt.state, attempt.cost_nusd, attempt.decision_id, attempt.attempt_id),
    )


def _book(
    db: sqlite3.Connection,
    account: Account,
    kind: str,
    attempt_id: str,
    change: Change,
    turn: TurnRecord | None = None,
) -> Account:
    """The account after the change, and after the turn it answered, if any; its row and the journal get it.

    A raise or correction that changes nothing is no entry of the journal.
    """
    is_entry = change != NO_CHANGE or kind not in ("raise", "correct")
    if is_entry:
        _append(db, account.session_id, kind, attempt_id, change)
    after = account._replace(
        budget_nusd=account.budget_nusd + change.budget_nusd,
        spent_nusd=account.spent_nusd + change.spent_nusd,
        reserved_nusd=account.reserved_nusd + change.reserved_nusd,
        overshoot_nusd=account.overshoot_nusd + change.overshoot_nusd,
    )
    counters = (after.budget_nusd, after.spent_nusd, after.reserved_nusd, after.overshoot_nusd)
    if turn is not None:
        summary_sum = summed(account.summary_sum, turn.summary)
        after = after._replace(num_turns=account.num_turns + 1, summary_sum=summary_sum, latest=turn.latest)
        db.execute(
            f"UPDATE accounts SET {_SET_COUNTERS}, num_turns = ?, summary_sum = ?, latest = ?, {_NEXT} "  # nosec B608  # noqa: S608
            "WHERE session_id = ?",
            (*counters, after.num_turns, pack_doubles(summary_sum), to_json(turn.latest).decode(), account.session_id),
        )
    elif is_entry:
        db.execute(f"UPDATE accounts SET {_SET_COUNTERS} WHERE session_id = ?", (*counters, account.session_id))  # nosec B608  # noqa: S608
    return after


def _append(db: sqlite3.Connection, session_id: str, kind: str, attempt_id: str, change: Change) -> None:
    db.execute(
        "INSERT INTO entries (session_id, kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, "
        "at_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (session_id, kind, attempt_id, *change, time.time()),
    )


def _log_turn(db: sqlite3.Connection, account: Account, attempt_id: str, cost_nusd: int, turn: TurnRecord) -> None:
    """Keep the record of an answered turn, with the next number of its session."""
    row = (turn.decision_id, account.session_id, account.num_turns, attempt_id, cost_nusd, turn.owner)
    try:
        db.execute(
            "INSERT INTO decisions (decision_id, session_id, turn, attempt_id, settled_nusd, owner, at_s, record, "
            "embedding) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, time.time(), to_json(turn.record).decode(), turn.embedding),
        )
    except sqlite3.IntegrityError as error:
        raise used_decision(turn.decision_id) from error


def add_feedback(db: sqlite3.Connection, feedback: Feedback) -> None:
    row = db.execute(
        "SELECT session_id FROM decisions WHERE decision_id = ?1 UNION ALL "
        "SELECT session_id FROM accounts WHERE session_id = ?1",
        (feedback.target,),
    ).fetchone()
    if row is None:
        raise unknown_target(feedback.target)
    db.execute(
        "INSERT OR REPLACE INTO feedback (target, judge, score, at_s, owner) VALUES (?, ?, ?, ?, ?)",
        (feedback.target, feedback.judge, feedback.score, feedback.at_s, feedback.owner),
    )
    _number_log(db, row[0])


def _number_log(db: sqlite3.Connection, session_id: str) -> None:
    db.execute(f"UPDATE accounts SET {_NEXT} WHERE session_id = ?", (session_id,))  # nosec B608  # noqa: S608
