"""Reconcile: a provider's bill against the ledger, attempt by attempt; corrections are booked where asked."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from seqroute_ray.core.errors import LedgerError
from seqroute_ray.core.ledger import Attempt, AttemptState, Ledger
from seqroute_ray.serving.purse import in_month

_CHARGED = (AttemptState.SETTLED, AttemptState.EXPIRED)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """A bill compared; each attempt of it is counted once."""

    num_attempts: int
    num_equal: int
    num_different: int  # charged otherwise
    num_corrected: int  # of those that differ: 0 unless corrections were asked for
    num_open: int  # still reserved: their settling is to come
    num_released: int  # billed though the provider seemed not to have worked: nothing is charged for them
    num_unknown: int  # not in the ledger
    billed_usd: float
    booked_usd: float  # for the attempts that are known, before corrections


async def reconcile(ledger: Ledger, bill_nusd: Mapping[str, int], apply: bool) -> ReconcileReport:
    """bill_nusd: by attempt. With `apply`, attempts that were charged otherwise are corrected to the bill."""
    counts = dict.fromkeys(("equal", "different", "corrected", "open", "released", "unknown"), 0)
    booked_nusd = 0
    for attempt_id, cost_nusd in bill_nusd.items():
        attempt = await _find(ledger, attempt_id)
        verdict = _verdict(attempt, cost_nusd)
        counts[verdict] += 1
        if verdict != "equal":
            booked_usd = "none" if attempt is None else f"{attempt.cost_nusd / 1e9:.9f}"
            logger.info(
                "event=bill_%s attempt=%s bill_usd=%.9f booked_usd=%s", verdict, attempt_id, cost_nusd / 1e9, booked_usd
            )
        if attempt is None:
            continue
        booked_nusd += attempt.cost_nusd
        if apply and verdict == "different":
            await _correct(ledger, attempt, cost_nusd)
            counts["corrected"] += 1
    return ReconcileReport(
        num_attempts=len(bill_nusd),
        billed_usd=sum(bill_nusd.values()) / 1e9,
        booked_usd=booked_nusd / 1e9,
        **{f"num_{name}": count for name, count in counts.items()},
    )


async def _correct(ledger: Ledger, attempt: Attempt, cost_nusd: int) -> None:
    """In the month of its API key first, where it has one: a run that is cut off in between finds both again."""
    for each in (await _find(ledger, in_month(attempt.attempt_id)), attempt):
        if each is not None and each.state in _CHARGED:
            await ledger.correct(each.session_id, each.attempt_id, cost_nusd)


async def _find(ledger: Ledger, attempt_id: str) -> Attempt | None:
    try:
        return await ledger.attempt(attempt_id)
    except LedgerError:
        return None


def _verdict(attempt: Attempt | None, cost_nusd: int) -> str:
    if attempt is None:
        return "unknown"
    if attempt.state not in _CHARGED:
        return "open" if attempt.state is AttemptState.RESERVED else "released"
    return "equal" if attempt.cost_nusd == cost_nusd else "different"
