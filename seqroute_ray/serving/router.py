"""The routing decision: one turn and an account in, model, max_tokens and worst case out. No HTTP, no ledger writes.

A session's context, kept in its ledger account, is what routing remembers of earlier turns:
    num_turns    int, turns answered so far
    summary_sum  [R + 1] floats, sum of the earlier turns' QueryFeatures.summary
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.compiled_policy import CompiledPolicy, Outlook, Turn, affordable, lambda_greedy
from seqroute_ray.core.embedding import Embedder
from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.ledger import Account, exhausted
from seqroute_ray.core.money import NUSD_PER_USD, to_nusd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.queries import UNKNOWN_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which model answers a turn, how long it may be, and why."""

    model: str
    action: int
    lambda_per_usd: float
    bankruptcy_penalty: float  # of this session's budget, in turns of full quality
    q_values: dict[str, float]  # by model, in units of quality; before the price of money
    bankruptcy: dict[str, float]  # by model: predicted chance that the session will go bankrupt
    predicted_cost_usd: dict[str, float]  # by model, of this turn
    masked: dict[str, str]  # model -> reason
    max_tokens: int
    reserve_nusd: int  # worst case: prompt bound and max_tokens at the catalog's prices, rounded up
    policy_version: str
    summary: tuple[float, ...]  # [R + 1] QueryFeatures.summary of this turn, for the session's context

    def to_json(self) -> dict[str, Any]:
        """What an answer says about itself; money in USD."""
        fields = asdict(self)
        del fields["summary"]
        fields["reserve_usd"] = fields.pop("reserve_nusd") / 1e9
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is known of a request's prompt beside the query's text."""

    tokens: int  # typical estimate of the whole prompt: what the cost is predicted from
    tokens_bound: int  # upper bound: what is reserved
    task_type: str = UNKNOWN_TYPE  # as the caller names it


class Router:
    """A policy artefact and its embedder, ready to decide. Raises ConfigError when they do not belong together."""

    def __init__(self, artefact: PolicyArtefact, embedder: Embedder, default_max_tokens: int = 1024) -> None:
        if embedder.name != artefact.embedder:
            raise ConfigError(f"the policy was trained on embedder {artefact.embedder!r}, got {embedder.name!r}")
        self.artefact, self.version = artefact, artefact.version
        self._policy = CompiledPolicy(artefact)
        self._embedder, self._default_max_tokens = embedder, default_max_tokens
        models = artefact.catalog.models
        prices = [_nusd_per_token(usd) for model in models for usd in (model.usd_per_m_input, model.usd_per_m_output)]
        # Prices in whole units of which a nano-dollar has so many: exact, without the cost of fractions.
        self._units_per_nusd = math.lcm(*(price.denominator for price in prices))
        units = [int(price * self._units_per_nusd) for price in prices]
        self._input_price, self._output_price = units[::2], units[1::2]

    def embed(self, text: str) -> NDArray[np.float32]:
        """[1, D]; may block on a network embedder."""
        return self._embedder.embed([text])

    def decide(
        self, text: str, account: Account, prompt: Prompt, max_tokens: int | None, lambda_per_usd: float
    ) -> Decision:
        """Choose for a query text; see `choose`."""
        return self.choose(self.embed(text), account, prompt, max_tokens, lambda_per_usd)

    def choose(
        self,
        embedding: NDArray[np.float32],
        account: Account,
        prompt: Prompt,
        max_tokens: int | None,
        lambda_per_usd: float,
    ) -> Decision:
        """The model that the policy prefers among those that the money left can pay.

        embedding: [1, D] of the query. max_tokens: asked for; None: the default.
        Raises BudgetExhaustedError when not even one token of any model can be paid.
        """
        catalog, remaining_nusd = self.artefact.catalog, account.remaining_nusd
        outlook = self._policy.outlook(self._turn(embedding, account, prompt))
        clamps = self.clamps(prompt.tokens_bound, max_tokens, remaining_nusd)
        if not any(clamps):
            raise exhausted(account, min(self.worst_case_nusd(k, prompt.tokens_bound, 1) for k in range(len(catalog))))
        allowed = _allowed(outlook, clamps, remaining_nusd / NUSD_PER_USD)
        penalty = self.artefact.penalty(account.budget_nusd / NUSD_PER_USD)
        q_values = outlook.q_values(penalty)
        action = lambda_greedy(q_values, outlook.cost_usd, allowed, lambda_per_usd)
        return Decision(
            model=catalog.names[action],
            action=action,
            lambda_per_usd=lambda_per_usd,
            bankruptcy_penalty=penalty,
            q_values=dict(zip(catalog.names, q_values, strict=True)),
            bankruptcy=dict(zip(catalog.names, outlook.bankruptcy, strict=True)),
            predicted_cost_usd=dict(zip(catalog.names, outlook.cost_usd, strict=True)),
            masked=self._reasons(allowed, clamps, outlook.cost_high_usd, prompt.tokens_bound, remaining_nusd),
            max_tokens=clamps[action],
            reserve_nusd=self.worst_case_nusd(action, prompt.tokens_bound, clamps[action]),
            policy_version=self.version,
            summary=tuple(outlook.summary),
        )

    def _turn(self, embedding: NDArray[np.float32], account: Account, prompt: Prompt) -> Turn:
        num_turns, summary_sum = _read_context(account.context, self.artefact.layout.summary_width)
        return Turn(
            embedding=embedding[0],
            task_type=prompt.task_type,
            prompt_tokens=prompt.tokens,
            remaining_usd=account.remaining_nusd / NUSD_PER_USD,
            num_earlier=num_turns,
            earlier_summary=summary_sum,
        )

    def clamps(self, prompt_tokens: int, max_tokens: int | None, remaining_nusd: int) -> list[int]:
        """[K] max_tokens each model may be given; 0 where the money left cannot pay one token."""
        asked = max_tokens or self._default_max_tokens
        return [self._clamp(action, prompt_tokens, asked, remaining_nusd) for action in range(len(self._input_price))]

    def _clamp(self, action: int, prompt_tokens: int, asked: int, remaining_nusd: int) -> int:
        limit = self.artefact.catalog.models[action].max_output_tokens or asked
        left = remaining_nusd * self._units_per_nusd - prompt_tokens * self._input_price[action]
        if left < 0:
            return 0
        price = self._output_price[action]
        return min(asked, limit, left // price) if price else min(asked, limit)

    def worst_case_nusd(self, action: int, prompt_tokens: int, completion_tokens: int) -> int:
        """Price of a call in nano-dollars, rounded up; exact."""
        units = prompt_tokens * self._input_price[action] + completion_tokens * self._output_price[action]
        return -(-units // self._units_per_nusd)

    def cost_nusd(self, action: int, prompt_tokens: int, completion_tokens: int) -> int:
        """True cost of a call, priced as the training logs are."""
        return int(to_nusd(self.artefact.catalog.cost_usd(action, prompt_tokens, completion_tokens)))

    def _reasons(
        self,
        allowed: list[bool],
        clamps: list[int],
        high_usd: list[float],
        prompt_tokens: int,
        remaining_nusd: int,
    ) -> dict[str, str]:
        reasons = {}
        for action in range(len(allowed)):
            if allowed[action]:
                continue
            if clamps[action]:
                why = f"high quantile of its predicted cost ${high_usd[action]:.9f}"
            else:
                why = f"prompt and one token, up to ${self.worst_case_nusd(action, prompt_tokens, 1) / 1e9:.9f},"
            reasons[self.artefact.catalog.names[action]] = f"{why} exceeds remaining ${remaining_nusd / 1e9:.9f}"
        return reasons


def _nusd_per_token(usd_per_m: float) -> Fraction:
    """The price as it is meant, without binary rounding: 0.15 is 150 nano-dollars a token."""
    return Fraction(f"{usd_per_m:.12g}") * 1000


def _allowed(outlook: Outlook, clamps: list[int], remaining_usd: float) -> list[bool]:
    """[K]: affordable among the models that can be paid at all; a free model's cost of 0 always fits."""
    mean_usd, high_usd = (
        [usd if clamp else math.inf for usd, clamp in zip(costs_usd, clamps, strict=True)]
        for costs_usd in (outlook.cost_usd, outlook.cost_high_usd)
    )
    return affordable(mean_usd, high_usd, remaining_usd)


def _read_context(context: Mapping[str, Any], width: int) -> tuple[int, list[float]]:
    """num_turns and summary_sum [width]; those of a first turn when the context is empty."""
    if not context:
        return 0, [0.0] * width
    summary_sum: list[float] = context.get("summary_sum", [])
    if len(summary_sum) != width:
        raise ArtefactError(
            f"this session was begun under a policy of {len(summary_sum)} summary features, this one has {width}; "
            "begin a new session"
        )
    return context["num_turns"], summary_sum


def advance(context: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """The session's context after this turn."""
    num_turns, summary_sum = _read_context(context, len(decision.summary))
    total = [before + now for before, now in zip(summary_sum, decision.summary, strict=True)]
    return {"num_turns": num_turns + 1, "summary_sum": total}
