"""Stored answers in the ledger's SQLite file: idempotency keys claimed, given back, answered, dropped with age."""

import json
import sqlite3

from seqroute_ray.core.ledger import Claim, StoredAnswer

PAGE = 100  # dropped by one operation: nobody should wait long for it


def claim_key(
    db: sqlite3.Connection, place: tuple[str, str], body_hash: str, now_s: float, lease_s: float
) -> tuple[Claim, StoredAnswer | None]:
    """place: session and key."""
    made = db.execute(
        "INSERT INTO answers (session_id, key, body_hash, lease_until_s, at_s) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET lease_until_s = excluded.lease_until_s, at_s = excluded.at_s "
        "WHERE status IS NULL AND lease_until_s < excluded.at_s AND body_hash = excluded.body_hash",
        (*place, body_hash, now_s + lease_s, now_s),
    )
    if made.rowcount:
        return Claim.MINE, None
    known_hash, status, headers, body = db.execute(
        "SELECT body_hash, status, headers, body FROM answers WHERE session_id = ? AND key = ?", place
    ).fetchone()
    if known_hash != body_hash:
        return Claim.CONFLICT, None
    if status is None:
        return Claim.IN_FLIGHT, None
    return Claim.ANSWERED, StoredAnswer(status=status, headers=json.loads(headers), body=body)


def disclaim_key(db: sqlite3.Connection, session_id: str, key: str) -> None:
    db.execute("DELETE FROM answers WHERE session_id = ? AND key = ? AND status IS NULL", (session_id, key))


def keep_answer(db: sqlite3.Connection, session_id: str, key: str, answer: StoredAnswer) -> None:
    """Keep it where the key is claimed and has no answer yet: the first one stays."""
    db.execute(
        "UPDATE answers SET status = ?, headers = ?, body = ?, num_bytes = ? "
        "WHERE session_id = ? AND key = ? AND status IS NULL",
        (answer.status, json.dumps(answer.headers), answer.body, len(answer.body), session_id, key),
    )


def drop_some_answers(db: sqlite3.Connection, now_s: float, max_age_s: float, max_bytes: int) -> int:
    """Drop up to PAGE that are older, else up to PAGE of the oldest above the size; a key in flight has its lease."""
    old = db.execute(
        "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers WHERE at_s < ? "
        "AND (status IS NOT NULL OR lease_until_s < ?) LIMIT ?)",
        (now_s - max_age_s, now_s, PAGE),
    )
    if old.rowcount:
        return old.rowcount
    num_bytes = db.execute("SELECT coalesce(sum(num_bytes), 0) FROM answers").fetchone()[0]
    oldest = "SELECT rowid, num_bytes FROM answers WHERE num_bytes > 0 ORDER BY at_s, rowid LIMIT ?"
    above = list[tuple[int]]()
    for rowid, its_bytes in db.execute(oldest, (PAGE,)):
        if num_bytes <= max_bytes:
            break
        num_bytes -= its_bytes
        above.append((rowid,))
    db.executemany("DELETE FROM answers WHERE rowid = ?", above)
    return len(above)
