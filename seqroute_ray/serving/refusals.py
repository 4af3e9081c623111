"""The refusals of a turn that has no money or no model: what they say and how to go on."""

import math
from dataclasses import replace
from typing import Any

from seqroute_ray.core.errors import BudgetExhaustedError, NoModelError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.ledger_rules import exhausted
from seqroute_ray.serving.breaker import Breaker
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.router import Router
from seqroute_ray.serving.turn import money

HINT = (
    'raise the budget with PUT /v1/sessions/{id} and {"budget_usd": ...}, wait for running turns to give back what '
    "they reserved, or send a shorter prompt"
)


def budget_exhausted(
    error: BudgetExhaustedError, account: Account, client_id: str, limit_nusd: int | None, metrics: Metrics
) -> RequestError:
    """402, with what is spent, reserved and left of the session that its client calls so."""
    limited = limit_nusd is not None and limit_nusd < account.remaining_nusd
    metrics.add("budget_refusals", scope="turn" if limited else "session")
    if not limited and account.reserved_nusd:
        metrics.add("false_blocks")
    details: dict[str, Any] = {**money(account), "hint": HINT}
    message = str(exhausted(replace(account, session_id=client_id), error.amount_nusd))
    if limited and limit_nusd is not None:
        message += f"; this turn may cost ${limit_nusd / 1e9:.9f} at most (x-max-turn-usd, or the key's monthly budget)"
        details["turn_limit_usd"] = limit_nusd / 1e9
    return RequestError(message, status=402, code="budget_exhausted", **details)


def no_model(error: NoModelError, breaker: Breaker, router: Router) -> RequestError:
    """503, and when to come again; 400 where no wait would help: the prompt is too long for every model."""
    waits_s = [wait_s for name in router.artefact.catalog.names if (wait_s := breaker.wait_s(name)) > 0]
    if not waits_s:
        return RequestError(str(error), code="context_length_exceeded")
    retry_after_s = max(1, math.ceil(min(waits_s)))
    return RequestError(f"{error}; try again later", status=503, code="no_model_available", retry_after_s=retry_after_s)
