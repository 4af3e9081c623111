"""The routing decision: one turn and an account in, model, max_tokens and worst case out. No HTTP, no ledger writes.

The ladder when little is left: a cheaper model, a shorter answer, a free model if the pool has one, then
BudgetExhaustedError, which a raised budget resumes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.compiled_policy import CompiledPolicy, Outlook, Turn, affordable, lambda_greedy
from seqroute_ray.core.embedding import Embedder, WordLlamaEmbedder
from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, NoModelError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.ledger_rules import exhausted
from seqroute_ray.core.money import NUSD_PER_USD
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.serving.pricing import Pricing

_MAX_BUDGETS = 1024  # whose penalty is kept


class Decision(NamedTuple):
    """Which model answers a turn, how long it may be, and why."""

    model: str
    action: int
    chosen_by: str  # policy, exploration, or what left no choice: pinned, tool_call, reasoning
    degraded: tuple[str, ...]  # rungs of the ladder that were taken: cheaper_model, shorter_answer, free_model
    lambda_per_usd: float
    bankruptcy_penalty: float  # of this session's budget, in turns of full quality
    q_values: dict[str, float]  # by model, in units of quality; before the price of money
    bankruptcy: dict[str, float]  # by model: predicted chance that the session will go bankrupt
    predicted_cost_usd: dict[str, float]  # by model, of this turn; a model that holds the prompt's cache is cheaper
    masked: dict[str, str]  # model -> reason
    propensity: float  # chance of this choice
    max_tokens: int
    reserve_nusd: int  # worst case: prompt bound and max_tokens at the catalog's prices, rounded up
    policy_version: str
    summary: tuple[float, ...]  # [R + 1] QueryFeatures.summary of this turn, for the session's memory

    def to_json(self) -> dict[str, Any]:
        """What an answer says about itself; money in USD."""
        shown = self._asdict()
        del shown["summary"]
        shown["reserve_usd"] = shown.pop("reserve_nusd") / 1e9
        return shown


class Prompt(NamedTuple):
    """What is known of a request's prompt beside the query's text."""

    tokens: int  # typical estimate of the whole prompt: what the cost is predicted from
    tokens_bound: int  # upper bound: what is reserved
    task_type: str = UNKNOWN_TYPE  # as the caller names it
    cached_tokens: int = 0  # of tokens: what the session's last model may still hold in its prefix cache


class Wish(NamedTuple):
    """What a request asks of the decision beside its prompt."""

    max_tokens: int | None = None  # None: the server's default
    lambda_per_usd: float = 0.0
    limit_nusd: int | None = None  # of this turn, below what the session has left
    only: str | None = None  # the one model that may answer ...
    only_because: str = "policy"  # ... and why; see Decision.chosen_by
    excluded: Mapping[str, str] = {}  # model -> why it cannot be called now
    draws: tuple[float, float] | None = None  # two uniform numbers: explore with the first below the router's epsilon


class Router:
    """A policy artefact and its embedder, ready to decide. Raises ConfigError when they do not belong together.

    pricing: [K] of the catalog's models.
    epsilon: chance of a uniform choice among what can be afforded, for requests that bring draws.
    """

    def __init__(
        self,
        artefact: PolicyArtefact,
        embedder: Embedder,
        pricing: Sequence[Pricing],
        default_max_tokens: int = 1024,
        epsilon: float = 0.0,
    ) -> None:
        if embedder.name != artefact.embedder:
            raise ConfigError(f"the policy was trained on embedder {artefact.embedder!r}, got {embedder.name!r}")
        self.artefact, self.version, self._names = artefact, artefact.version, artefact.catalog.names
        self._penalty = lru_cache(_MAX_BUDGETS)(artefact.penalty)
        self._policy = CompiledPolicy(artefact)
        self._embedder, self._default_max_tokens, self._epsilon = embedder, default_max_tokens, epsilon
        if len(pricing) != len(artefact.catalog):
            raise ConfigError(f"{len(artefact.catalog)} models need as many prices, got {len(pricing)}")
        self.pricing = tuple(pricing)
        self.embeds_here = isinstance(embedder, WordLlamaEmbedder)  # in microseconds; another one may be far away

    def embed(self, text: str) -> NDArray[np.float32]:
        """[1, D]; may block on a network embedder."""
        return self._embedder.embed([text])

    def choose(self, embedding: NDArray[np.float32], account: Account, prompt: Prompt, wish: Wish) -> Decision:
        """The model that the policy prefers among those that the money left can pay.

        embedding: [1, D] of the query. Raises BudgetExhaustedError when not even one token of any model can be paid,
        NoModelError when those that could be paid are excluded.
        """
        outlook = self._policy.outlook(self._turn(embedding, account, prompt))
        limit_nusd = account.remaining_nusd if wish.limit_nusd is None else min(account.remaining_nusd, wish.limit_nusd)
        payable = self.clamps(prompt.tokens_bound, wish.max_tokens, limit_nusd)
        excluded = self._excluded(prompt, wish)
        clamps = [0 if name in excluded else clamp for name, clamp in zip(self._names, payable, strict=True)]
        if not any(clamps):
            raise self._nothing_left(account, prompt, payable, excluded)
        penalty = self._penalty(account.budget_nusd / NUSD_PER_USD)
        q_values = outlook.q_values(penalty)
        cost_usd = self._cost_usd(outlook, account, prompt)
        allowed = _allowed(outlook, clamps, limit_nusd / NUSD_PER_USD)
        greedy = lambda_greedy(q_values, cost_usd, allowed, wish.lambda_per_usd)
        action, propensity = self._explored(greedy, allowed, wish)
        preferred = lambda_greedy(
            q_values, cost_usd, [name not in excluded for name in self._names], wish.lambda_per_usd
        )
        return Decision(
            model=self._names[action],
            action=action,
            chosen_by=wish.only_because if wish.only else "policy" if action == greedy else "exploration",
            degraded=self._rungs(action, greedy, preferred, clamps, wish),
            lambda_per_usd=wish.lambda_per_usd,
            bankruptcy_penalty=penalty,
            q_values=self._by_model(q_values),
            bankruptcy=self._by_model(outlook.bankruptcy),
            predicted_cost_usd=self._by_model(cost_usd),
            masked=excluded
            | self._reasons(allowed, payable, outlook.cost_high_usd, prompt.tokens_bound, limit_nusd, excluded),
            propensity=propensity,
            max_tokens=clamps[action],
            reserve_nusd=self.pricing[action].worst_case_nusd(prompt.tokens_bound, clamps[action]),
            policy_version=self.version,
            summary=tuple(outlook.summary),
        )

    def _by_model(self, values: list[float]) -> dict[str, float]:
        return dict(zip(self._names, values, strict=True))

    def _turn(self, embedding: NDArray[np.float32], account: Account, prompt: Prompt) -> Turn:
        width = self.artefact.layout.summary_width
        # Memory of another policy's features is no memory for this one: the session is as if new.
        known = len(account.summary_sum) == width
        return Turn(
            embedding=embedding[0],
            task_type=prompt.task_type,
            prompt_tokens=prompt.tokens,
            remaining_usd=account.remaining_nusd / NUSD_PER_USD,
            num_earlier=account.num_turns if known else 0,
            earlier_summary=account.summary_sum if known else [0.0] * width,
        )

    def _excluded(self, prompt: Prompt, wish: Wish) -> dict[str, str]:
        """model -> why it is out of the question, money apart."""
        excluded = dict(wish.excluded)
        for model in self.artefact.catalog.models:
            if model.max_input_tokens is not None and prompt.tokens > model.max_input_tokens:
                excluded[model.name] = (
                    f"about {prompt.tokens} prompt tokens exceed its limit of {model.max_input_tokens}"
                )
        if wish.only is not None:
            excluded |= {name: f"{wish.only_because}: {wish.only}" for name in self._names if name != wish.only}
        return excluded

    def _nothing_left(
        self, account: Account, prompt: Prompt, payable: list[int], excluded: Mapping[str, str]
    ) -> BudgetExhaustedError | NoModelError:
        """Out of money, or out of models that answer."""
        candidates = [action for action, name in enumerate(self._names) if name not in excluded]
        if candidates or not any(payable):
            least = min(
                self.pricing[k].worst_case_nusd(prompt.tokens_bound, 1) for k in candidates or range(len(payable))
            )
            return exhausted(account, least)
        why = "; ".join(f"{name}: {reason}" for name, reason in excluded.items())
        return NoModelError(f"no model can answer now ({why})")

    def _explored(self, greedy: int, allowed: list[bool], wish: Wish) -> tuple[int, float]:
        """Action and its chance. A model that was asked for by name is no experiment."""
        candidates = [action for action, fits in enumerate(allowed) if fits]
        if wish.draws is None or not self._epsilon or len(candidates) == 1:
            return greedy, 1.0
        whether, which = wish.draws
        action = candidates[int(which * len(candidates))] if whether < self._epsilon else greedy
        uniform = self._epsilon / len(candidates)
        return action, uniform + (1 - self._epsilon if action == greedy else 0.0)

    def _rungs(self, action: int, greedy: int, preferred: int, clamps: list[int], wish: Wish) -> tuple[str, ...]:
        """How far down the ladder this choice is: what money alone has changed."""
        models, rungs = self.artefact.catalog.models, []
        if action == greedy != preferred:
            rungs.append("cheaper_model")
        asked = wish.max_tokens or self._default_max_tokens
        if clamps[action] < min(asked, models[action].max_output_tokens or asked):
            rungs.append("shorter_answer")
        is_free = self.pricing[action].is_free
        if rungs and is_free:
            rungs.append("free_model")
        return tuple(rungs)

    def clamps(self, prompt_tokens_bound: int, max_tokens: int | None, remaining_nusd: int) -> list[int]:
        """[K] max_tokens each model may be given; 0 where the money left cannot pay one token."""
        asked = max_tokens or self._default_max_tokens
        return [
            pricing.max_tokens(prompt_tokens_bound, min(asked, model.max_output_tokens or asked), remaining_nusd)
            for pricing, model in zip(self.pricing, self.artefact.catalog.models, strict=True)
        ]

    def _cost_usd(self, outlook: Outlook, account: Account, prompt: Prompt) -> list[float]:
        """[K] expected cost of the turn; a model that still holds the prompt's beginning in its cache is cheaper."""
        latest = account.latest.get("model")
        if not prompt.cached_tokens or latest not in self._names:
            return outlook.cost_usd
        action = self._names.index(latest)
        saved_usd = self.pricing[action].cache_saving_nusd(prompt.cached_tokens) / NUSD_PER_USD
        return [max(0.0, cost - saved_usd) if other == action else cost for other, cost in enumerate(outlook.cost_usd)]

    def _reasons(
        self,
        allowed: list[bool],
        clamps: list[int],
        high_usd: list[float],
        prompt_tokens: int,
        remaining_nusd: int,
        excluded: Mapping[str, str],
    ) -> dict[str, str]:
        """model -> why money rules it out."""
        reasons = {}
        for action, name in enumerate(self._names):
            if allowed[action] or name in excluded:
                continue
            if clamps[action]:
                why = f"high quantile of its predicted cost ${high_usd[action]:.9f}"
            else:
                why = (
                    f"prompt and one token, up to ${self.pricing[action].worst_case_nusd(prompt_tokens, 1) / 1e9:.9f},"
                )
            reasons[name] = f"{why} exceeds remaining ${remaining_nusd / 1e9:.9f}"
        return reasons


def _allowed(outlook: Outlook, clamps: list[int], remaining_usd: float) -> list[bool]:
    """[K]: affordable among the models that can be paid at all; a free model's cost of 0 always fits."""
    mean_usd, high_usd = (
        [usd if clamp else math.inf for usd, clamp in zip(costs_usd, clamps, strict=True)]
        for costs_usd in (outlook.cost_usd, outlook.cost_high_usd)
    )
    return affordable(mean_usd, high_usd, remaining_usd)
