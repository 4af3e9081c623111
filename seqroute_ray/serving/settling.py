"""The end of an answered attempt: its bill, its record, its charge; late when the ledger does not answer at once."""

import logging
import time
from typing import Any

import numpy as np

from seqroute_ray.core.ledger import StoredAnswer, TurnRecord
from seqroute_ray.core.ledger_rules import summed
from seqroute_ray.serving.attempts import Started
from seqroute_ray.serving.late import LateWrites
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.prompt_tokens import MIN_BYTES_PER_TOKEN
from seqroute_ray.serving.turn import Paid
from seqroute_ray.serving.usage import Tally

logger = logging.getLogger(__name__)


class Settling:
    """Charges answered attempts."""

    def __init__(self, metrics: Metrics, late: LateWrites, unseen_stream_tokens: int) -> None:
        self._metrics, self._late, self._unseen_tokens = metrics, late, unseen_stream_tokens

    def paid(self, started: Started, tally: Tally) -> Paid:
        """What the turn will have cost, before it is booked: the answer says so itself."""
        cost_nusd, account = self.cost_nusd(started, tally), started.purse.account
        after = account._replace(
            spent_nusd=account.spent_nusd + cost_nusd,
            reserved_nusd=account.reserved_nusd - started.decision.reserve_nusd,
            num_turns=account.num_turns + 1,
            summary_sum=summed(account.summary_sum, started.decision.summary),
        )
        return Paid(
            decision_id=started.ask.decision_id,
            decision=started.decision,
            session=started.ask.session,
            cost_nusd=cost_nusd,
            account=after,
            policy=started.chosen.side,
        )

    def cost_nusd(self, started: Started, tally: Tally) -> int:
        """By the provider's usage; by what was seen, and what may be unseen, where a stream broke off; the whole
        reservation where neither is known.
        """
        decision = started.decision
        pricing = started.chosen.router.pricing[decision.action]
        if tally.usage is not None:
            return pricing.cost_nusd(tally.usage)
        if not tally.finished:
            tokens_seen = -(-tally.completion_bytes // MIN_BYTES_PER_TOKEN)
            num_tokens = min(decision.max_tokens, tokens_seen + self._unseen_tokens)
            return min(
                pricing.worst_case_nusd(started.ask.request.prompt_tokens_bound, num_tokens), decision.reserve_nusd
            )
        logger.warning("usage_missing model=%s charged_usd=%.9f", decision.model, decision.reserve_nusd / 1e9)
        return decision.reserve_nusd

    async def settle(
        self, started: Started, tally: Tally, paid: Paid, *, answer: tuple[str, StoredAnswer] | None = None
    ) -> None:
        """Book the turn; late when the ledger does not answer."""
        self._count(started, paid)
        turn = _record(started, tally, paid)
        attempt_id, purse = started.attempt_id, started.purse
        await self._late.write(attempt_id, lambda: purse.settle(attempt_id, paid.cost_nusd, turn, answer))

    def _count(self, started: Started, paid: Paid) -> None:
        decision, metrics = started.decision, self._metrics
        metrics.add("decisions", model=decision.model, chosen_by=decision.chosen_by, policy=paid.policy)
        for rung in decision.degraded:
            metrics.add("degraded", rung=rung)
        metrics.add("reserved_usd", -decision.reserve_nusd / 1e9)
        metrics.add("spent_usd", paid.cost_nusd / 1e9, model=decision.model)
        metrics.add("overshoot_usd", max(0, paid.cost_nusd - decision.reserve_nusd) / 1e9, model=decision.model)


def _record(started: Started, tally: Tally, paid: Paid) -> TurnRecord:
    """The line of the decision log: numbers and names, never a text."""
    usage, ask = tally.usage, started.ask
    record: dict[str, Any] = {
        **started.decision.to_json(),
        "decision_id": ask.decision_id,
        "attempt_id": started.attempt_id,
        "session_from": ask.session.source,
        "policy": paid.policy,
        "task_type": ask.knobs.task_type,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_prompt_tokens": usage.cached_prompt_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "finished": tally.finished,
        "cost_nusd": paid.cost_nusd,
        "failed_attempts": list(started.failures),
        "latency_s": round(time.monotonic() - ask.started_s, 6),
        **({"shadow": started.shadow} if started.shadow else {}),
    }
    return TurnRecord(
        decision_id=ask.decision_id,
        summary=started.decision.summary,
        latest={"model": started.decision.model},
        record=record,
        embedding=started.embedding[0].astype(np.float16).tobytes(),
        owner=ask.caller.id,
    )
