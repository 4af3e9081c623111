"""The record of an answered turn as a ledger returns it: what the router wrote, and what the ledger knows beside."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from seqroute_ray.core.ledger import Feedback


class StoredTurn(NamedTuple):
    """An answered turn as a store keeps it."""

    decision_id: str
    session_id: str
    turn: int  # the store's number, from 0
    owner: str
    at_s: float
    record: str  # JSON
    correction_nusd: int  # what its attempt's cost changed by since


def full_record(stored: StoredTurn, feedback: Iterable[Feedback]) -> dict[str, Any]:
    """What Ledger.decision returns; the ledger's own fields win over those of the record."""
    record: dict[str, Any] = json.loads(stored.record)
    if "cost_nusd" in record:
        record["cost_nusd"] += stored.correction_nusd
    scores = [{"judge": one.judge, "score": one.score, "at_s": one.at_s, "owner": one.owner} for one in feedback]
    own = {name: getattr(stored, name) for name in ("decision_id", "session_id", "turn", "owner", "at_s")}
    return record | own | {"feedback": scores}
