"""What Redis answers as accounts, attempts, entries and logs; see redis_scripts for how they are written."""

import json
from collections.abc import Mapping, Sequence

from seqroute_ray.core.ledger import Account, Attempt, AttemptState, Change, Entry, Feedback, LoggedTurn
from seqroute_ray.serving.ledgers.records import StoredTurn, full_record


def account_of(session_id: str, fields: Sequence[bytes]) -> Account:
    """fields: of redis_scripts.ACCOUNT_FIELDS."""
    *counters, summary_sum, latest, closed = fields
    budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, num_turns = map(int, counters)
    return Account(
        session_id=session_id,
        budget_nusd=budget_nusd,
        spent_nusd=spent_nusd,
        reserved_nusd=reserved_nusd,
        overshoot_nusd=overshoot_nusd,
        num_turns=num_turns,
        summary_sum=tuple(map(float, summary_sum.split(b","))) if summary_sum else (),
        latest=json.loads(latest),
        closed=closed == b"1",
    )


def attempt_of(session_id: str, attempt_id: str, packed: bytes) -> Attempt:
    model, amount_nusd, lease_until_s, state, cost_nusd, decision_id = json.loads(packed)
    return Attempt(
        attempt_id=attempt_id,
        session_id=session_id,
        model=model,
        amount_nusd=int(amount_nusd),
        lease_until_s=float(lease_until_s),
        state=AttemptState(state),
        cost_nusd=int(cost_nusd),
        decision_id=decision_id,
    )


def entry_of(session_id: str, packed: bytes) -> Entry:
    kind, attempt_id, budget_nusd, spent_nusd, reserved_nusd, overshoot_nusd, at_s = json.loads(packed)
    change = Change(
        budget_nusd=int(budget_nusd),
        spent_nusd=int(spent_nusd),
        reserved_nusd=int(reserved_nusd),
        overshoot_nusd=int(overshoot_nusd),
    )
    return Entry(session_id=session_id, kind=kind, attempt_id=attempt_id, change=change, at_s=float(at_s))


def pack_feedback(feedback: Feedback) -> tuple[str, str]:
    """Field and value of a session's hash of feedback."""
    return json.dumps([feedback.target, feedback.judge]), json.dumps([feedback.score, feedback.at_s, feedback.owner])


def feedback_of(target: str, hash_of_all: Mapping[bytes, bytes]) -> list[Feedback]:
    """Oldest first."""
    found = []
    for place, packed in hash_of_all.items():
        its_target, judge = json.loads(place)
        score, at_s, owner = json.loads(packed)
        if its_target == target:
            found.append(Feedback(target=target, judge=judge, score=score, at_s=at_s, owner=owner))
    return sorted(found, key=lambda feedback: feedback.at_s)


def attempt_of_decision(packed: bytes) -> str:
    attempt_id: str = json.loads(packed)[3]
    return attempt_id


def logged_turn_of(
    session_id: str,
    decision_id: str,
    decision: bytes,
    attempt: bytes,
    embedding: bytes,
    feedback: Mapping[bytes, bytes],
) -> LoggedTurn:
    """feedback: of the whole session."""
    turn, at_s, owner, attempt_id, settled_nusd, record = json.loads(decision)
    correction_nusd = attempt_of(session_id, attempt_id, attempt).cost_nusd - int(settled_nusd)
    stored = StoredTurn(decision_id, session_id, int(turn), owner, float(at_s), record, correction_nusd)
    return LoggedTurn(record=full_record(stored, feedback_of(decision_id, feedback)), embedding=embedding)
