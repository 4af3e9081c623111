"""What the ledgers' tests share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from seqroute_ray.core.ledger import Account, Ledger, TurnRecord
from seqroute_ray.serving.ledgers.factory import open_ledger

FAR_S = 1e10  # later than any lease
LEASE_S = 60.0


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[Ledger]:
    ledger = await open_ledger(place)
    try:
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def session_of(place: str, budget_nusd: int) -> AsyncIterator[Ledger]:
    """A ledger with the session "s"."""
    async with opened(place) as ledger:
        await ledger.open("s", budget_nusd)
        yield ledger


def money(account: Account) -> tuple[int, int, int, int]:
    """Budget, spent, reserved, overshoot."""
    return account.budget_nusd, account.spent_nusd, account.reserved_nusd, account.overshoot_nusd


def turn_of(decision_id: str, cost_nusd: int = 0, **record: object) -> TurnRecord:
    return TurnRecord(
        decision_id=decision_id,
        summary=(0.1, 0.2),
        latest={"decision_id": decision_id},
        record={"model": "m", "cost_nusd": cost_nusd, "prompt_tokens": 3, "completion_tokens": 4} | record,
        embedding=np.arange(4, dtype=np.float16).tobytes(),
        owner="key",
    )
