"""The refusals of a turn that has no money or no model: what they say and how to go on."""

import math
from typing import Any

from seqroute_ray.core.errors import BudgetExhaustedError, NoModelError
from seqroute_ray.core.ledger_rules import exhausted
from seqroute_ray.serving.breaker import Breaker
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.purse import Purse
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.router import Router
from seqroute_ray.serving.turn import money

# By what was short: the session's money, the month's of the API key, or what this one turn may cost.
HINTS = {
    "session": (
        'raise the budget with PUT /v1/sessions/{id} and {"budget_usd": ...}, wait for running turns to give back what '
        "they reserved, or send a shorter prompt"
    ),
    "month": (
        "the API key's monthly_budget_usd bounds all of its sessions: whoever runs the server can raise it; running "
        "turns give back what they reserved, and a new month (UTC) begins anew"
    ),
    "turn": "raise x-max-turn-usd (the key's max_turn_usd is its default), or send a shorter prompt",
}


def budget_exhausted(
    error: BudgetExhaustedError, purse: Purse, client_id: str, limit_nusd: int | None, metrics: Metrics
) -> RequestError:
    """402, with what is spent, reserved and left of the session that its client calls so."""
    scope, account = _scope(purse, limit_nusd), purse.account
    metrics.add("budget_refusals", scope=scope)
    short = {"session": account, "month": purse.month, "turn": None}[scope]
    if short is not None and error.amount_nusd <= short.budget_nusd - short.spent_nusd:
        metrics.add("false_blocks")
    details: dict[str, Any] = {**money(account), "scope": scope, "hint": HINTS[scope]}
    message = str(exhausted(account._replace(session_id=client_id), error.amount_nusd))
    if scope != "session" and limit_nusd is not None:
        why = "the API key's monthly budget" if scope == "month" else "x-max-turn-usd, or the key's max_turn_usd"
        message += f"; this turn may cost ${limit_nusd / 1e9:.9f} at most ({why})"
        details["turn_limit_usd"] = limit_nusd / 1e9
    return RequestError(message, status=402, code="budget_exhausted", **details)


def _scope(purse: Purse, limit_nusd: int | None) -> str:
    """Whose money was short: a key of HINTS."""
    if limit_nusd is None or limit_nusd >= purse.account.remaining_nusd:
        return "session"
    return "month" if purse.month is not None and purse.month.remaining_nusd <= limit_nusd else "turn"


def no_model(error: NoModelError, breaker: Breaker, router: Router) -> RequestError:
    """503, and when to come again; 400 where no wait would help: the prompt is too long for every model."""
    waits_s = [wait_s for name in router.artefact.catalog.names if (wait_s := breaker.wait_s(name)) > 0]
    if not waits_s:
        return RequestError(str(error), code="context_length_exceeded")
    retry_after_s = max(1, math.ceil(min(waits_s)))
    return RequestError(f"{error}; try again later", status=503, code="no_model_available", retry_after_s=retry_after_s)
