"""From a request to a provider that answers: decide, reserve, call; again or elsewhere when that fails.

Every attempt at a call has a reservation of its own, made before it and ended whatever happens. Retries are for
failures before the first byte that cost nothing; what may have been worked on is charged and not repeated.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from seqroute_ray.core.errors import BudgetExhaustedError, LedgerUnavailable, NoModelError
from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.backoff import backoff_s
from seqroute_ray.serving.breaker import Breaker
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.late import LateWrites
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.policies import Chosen
from seqroute_ray.serving.purse import Purse
from seqroute_ray.serving.refusals import budget_exhausted, no_model
from seqroute_ray.serving.router import Decision, Prompt, Router, Wish
from seqroute_ray.serving.turn import Ask, Embedding
from seqroute_ray.serving.upstream import UpstreamAnswer, UpstreamClient, UpstreamError
from seqroute_ray.serving.upstream_errors import not_admitted

MAX_WAIT_S = 2.0  # for another try with one model; a longer wait is a reason to ask another one
MAX_RESERVE_TRIES = 5  # a parallel turn may take the money between decision and reservation

logger = logging.getLogger(__name__)


class Started(NamedTuple):
    """A provider's answer has begun; its attempt is open until somebody ends it."""

    ask: Ask
    embedding: Embedding
    chosen: Chosen
    decision: Decision
    attempt_id: str
    purse: Purse
    upstream: UpstreamAnswer
    failures: tuple[dict[str, str], ...] = ()  # earlier attempts of this turn: model and why they failed
    shadow: dict[str, str] | None = None  # what the shadow policy would have done


class Attempts:
    """Providers, their circuit breakers, and the order in which they are tried."""

    def __init__(self, config: ServingConfig, upstream: UpstreamClient, metrics: Metrics, late: LateWrites) -> None:
        self._config, self._upstream, self._metrics, self._late = config, upstream, metrics, late
        self.breaker = Breaker(config.breaker, time.monotonic)
        self._rng, self._num_open = np.random.default_rng(), 0

    def decide(
        self,
        ask: Ask,
        chosen: Chosen,
        embedding: Embedding,
        purse: Purse,
        limit_nusd: int | None,
        excluded: Mapping[str, str] | None = None,
        *,
        explore: bool = True,
    ) -> Decision:
        """Raises RequestError (402), NoModelError."""
        try:
            return self.choose(ask, chosen.router, embedding, purse.account, limit_nusd, excluded, explore=explore)
        except BudgetExhaustedError as error:
            raise budget_exhausted(error, purse, ask.session.client_id, limit_nusd, self._metrics) from error

    def choose(
        self,
        ask: Ask,
        router: Router,
        embedding: Embedding,
        account: Account,
        limit_nusd: int | None,
        excluded: Mapping[str, str] | None = None,
        *,
        explore: bool = False,
    ) -> Decision:
        """Raises BudgetExhaustedError, NoModelError."""
        request = ask.request
        only, because = _only(ask, account.latest.get("model"), router.artefact.catalog.names)
        wish = Wish(
            max_tokens=request.max_tokens,
            lambda_per_usd=ask.knobs.lambda_per_usd,
            limit_nusd=limit_nusd,
            only=only,
            only_because=because,
            excluded=excluded or {},
            draws=(random.random(), random.random()) if explore else None,  # noqa: S311 - no secret
        )
        prompt = Prompt(
            tokens=request.prompt_tokens,
            tokens_bound=request.prompt_tokens_bound,
            task_type=ask.knobs.task_type,
            cached_tokens=_cached_tokens(ask),
        )
        try:
            return router.choose(embedding, account, prompt, wish)
        except (BudgetExhaustedError, NoModelError):
            if because != "tool_call":
                raise
            # What tools said is plain text: rather another model goes on with it than none.
            return router.choose(embedding, account, prompt, wish._replace(only=None, only_because="policy"))

    async def start(self, ask: Ask, chosen: Chosen, embedding: Embedding, purse: Purse) -> Started:
        """The first provider that answers. Raises RequestError, UpstreamError."""
        failures: list[dict[str, str]] = []
        given_up: dict[str, str] = {}
        last: UpstreamError | None = None
        while True:
            try:
                attempt_id, decision = await self._reserve(len(failures), ask, chosen, embedding, purse, given_up)
            except NoModelError as error:
                raise last or no_model(error, self.breaker, chosen.router) from error
            try:
                upstream = await self._call(attempt_id, decision, ask, purse)
            except UpstreamError as error:
                if not error.retryable:
                    raise
                last = error
                failures.append({"model": decision.model, "error": error.kind})
                await self._wait_or_give_up(decision.model, error, failures, given_up)
                continue
            return Started(
                ask=ask,
                embedding=embedding,
                chosen=chosen,
                decision=decision,
                attempt_id=attempt_id,
                purse=purse,
                upstream=upstream,
                failures=tuple(failures),
            )

    async def _wait_or_give_up(
        self, model: str, error: UpstreamError, failures: list[dict[str, str]], given_up: dict[str, str]
    ) -> None:
        """Wait for another try with this model, or leave it out for the rest of this turn."""
        num_failed = sum(failure["model"] == model for failure in failures)
        wait_s = backoff_s(num_failed, self._rng, error.retry_after_s)
        if num_failed > self._config.retries or wait_s > MAX_WAIT_S or not self.breaker.admits(model):
            given_up[model] = f"failed ({error.kind})"
        else:
            await asyncio.sleep(wait_s)

    def closed_circuits(self, chosen: Chosen) -> dict[str, str]:
        """model -> why it is not called for now."""
        names = chosen.router.artefact.catalog.names
        return {name: "failed repeatedly: left alone for now" for name in names if not self.breaker.admits(name)}

    async def _reserve(
        self, num_failed: int, ask: Ask, chosen: Chosen, embedding: Embedding, purse: Purse, given_up: Mapping[str, str]
    ) -> tuple[str, Decision]:
        """Decide and reserve; decide again when a parallel turn was faster. Raises RequestError (402), NoModelError."""
        for number in range(MAX_RESERVE_TRIES):
            attempt_id = f"{ask.decision_id}.{num_failed}.{number}"
            limit_nusd = await turn_limit_nusd(ask, purse)
            excluded = {**given_up, **self.closed_circuits(chosen)}
            decision = self.decide(ask, chosen, embedding, purse, limit_nusd, excluded)
            try:
                await purse.reserve(attempt_id, decision.model, decision.reserve_nusd)
            except BudgetExhaustedError as error:
                lost = error
                await purse.refresh()
                continue
            except LedgerUnavailable:
                self._late.write_later(attempt_id, partial(purse.forget, attempt_id))
                raise
            self._metrics.add("reserved_usd", decision.reserve_nusd / 1e9)
            return attempt_id, decision
        limit_nusd = await turn_limit_nusd(ask, purse)
        raise budget_exhausted(lost, purse, ask.session.client_id, limit_nusd, self._metrics)

    async def _call(self, attempt_id: str, decision: Decision, ask: Ask, purse: Purse) -> UpstreamAnswer:
        """Raises UpstreamError, after the attempt was ended."""
        permit = self.breaker.begin(decision.model)
        try:
            if permit is None:
                raise not_admitted(decision.model)
            request = ask.request
            fields = (
                {**request.fields, "stream_options": {"include_usage": True}}
                if request.include_usage
                else request.fields
            )
            answer = await self._upstream.start(decision.model, fields, decision.max_tokens, attempt_id, request.stream)
        except BaseException as error:  # raised again: whatever went wrong, the attempt ends
            if permit is not None and isinstance(error, UpstreamError):
                if error.is_providers_fault:
                    self.breaker.fail(permit, error.retry_after_s)
                    if (wait_s := self.breaker.wait_s(decision.model)) > 0:
                        logger.warning("circuit_open model=%s next_try_in_s=%.0f", decision.model, wait_s)
                else:
                    self.breaker.succeed(permit)
                self._count_circuits()
            await self._end_failed(error, attempt_id, decision, purse)
            raise
        self.breaker.succeed(permit)
        self._count_circuits()
        return answer

    def _count_circuits(self) -> None:
        before, self._num_open = self._num_open, self.breaker.num_open
        self._metrics.add("open_circuits", self._num_open - before)

    async def _end_failed(self, error: BaseException, attempt_id: str, decision: Decision, purse: Purse) -> None:
        """Give the reservation back when the provider surely did not work, else charge it."""
        charged = not isinstance(error, UpstreamError) or error.may_be_billed
        kind = error.kind if isinstance(error, UpstreamError) else type(error).__name__
        self._metrics.add("upstream_errors", model=decision.model, kind=kind)
        self._metrics.add("reserved_usd", -decision.reserve_nusd / 1e9)
        logger.warning("upstream_failed model=%s error=%s charged=%s", decision.model, kind, charged)
        if charged:
            self._metrics.add("spent_usd", decision.reserve_nusd / 1e9, model=decision.model)
            await self._late.write(attempt_id, partial(purse.settle, attempt_id, decision.reserve_nusd))
        else:
            await self._late.write(attempt_id, partial(purse.release, attempt_id))


async def turn_limit_nusd(ask: Ask, purse: Purse) -> int | None:
    """What this turn may cost beside what the session has left."""
    limits = [limit for limit in (ask.knobs.max_turn_nusd, await purse.month_left_nusd()) if limit is not None]
    return min(limits, default=None)


def _only(ask: Ask, latest_model: str | None, names: tuple[str, ...]) -> tuple[str | None, str]:
    """The one model that may answer, and why: it was asked for, or the conversation belongs to it."""
    if ask.request.pinned_model is not None:
        return ask.request.pinned_model, "pinned"
    if ask.request.lock and latest_model in names:
        return latest_model, ask.request.lock
    return None, "policy"


def _cached_tokens(ask: Ask) -> int:
    """Of the prompt's typical tokens, those that the last model may still have cached."""
    request = ask.request
    return min(request.prompt_tokens, request.prefix_bytes // 4)
