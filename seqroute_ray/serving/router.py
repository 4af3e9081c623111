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

from seqroute_ray.core.arrays import BoolArray
from seqroute_ray.core.embedding import Embedder
from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.ledger import Account, exhausted
from seqroute_ray.core.mdp import TurnFeatures, affordable, encode_state
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact, lambda_greedy
from seqroute_ray.core.queries import UNKNOWN_TYPE, Queries


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
        self._embedder, self._default_max_tokens = embedder, default_max_tokens
        models = artefact.catalog.models
        self._input_price = [_nusd_per_token(model.usd_per_m_input) for model in models]
        self._output_price = [_nusd_per_token(model.usd_per_m_output) for model in models]

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
        queries = Queries(embedding, np.array([prompt.task_type]), np.array([prompt.tokens]))
        summary = self.artefact.estimator.features.summary(queries)
        estimates = self.artefact.estimator.predict_from(summary, queries, catalog)
        clamps = self.clamps(prompt.tokens_bound, max_tokens, remaining_nusd)
        if not any(clamps):
            raise exhausted(account, min(self.worst_case_nusd(k, prompt.tokens_bound, 1) for k in range(len(catalog))))
        high_usd = estimates.cost_high_usd[0]
        allowed = self._allowed(estimates, clamps, remaining_nusd)
        penalty = self.artefact.penalty(float(to_usd(account.budget_nusd)))
        values = self.artefact.network.values(self.state(estimates, summary, account))
        q_values = values.q_values(penalty)
        action = int(lambda_greedy(q_values, estimates.cost_usd, allowed[None], lambda_per_usd)[0])
        return Decision(
            model=catalog.names[action],
            action=action,
            lambda_per_usd=lambda_per_usd,
            bankruptcy_penalty=penalty,
            q_values=dict(zip(catalog.names, q_values[0].tolist(), strict=True)),
            bankruptcy=dict(zip(catalog.names, values.bankruptcy[0].tolist(), strict=True)),
            predicted_cost_usd=dict(zip(catalog.names, estimates.cost_usd[0].tolist(), strict=True)),
            masked=self._reasons(allowed, clamps, high_usd, prompt.tokens_bound, remaining_nusd),
            max_tokens=clamps[action],
            reserve_nusd=self.worst_case_nusd(action, prompt.tokens_bound, clamps[action]),
            policy_version=self.version,
            summary=tuple(summary[0].tolist()),
        )

    def state(self, estimates: Estimates, summary: NDArray[np.float32], account: Account) -> NDArray[np.float32]:
        """[1, state_dim] of this turn, exactly as training encodes it."""
        num_turns, summary_sum = _read_context(account.context, summary.shape[1])
        history = ((summary_sum + summary) / (num_turns + 1)).astype(np.float32)
        remaining_usd = np.array([to_usd(account.remaining_nusd)])
        return encode_state(
            self.artefact.layout, TurnFeatures(estimates, history), remaining_usd, np.array([num_turns])
        )

    def clamps(self, prompt_tokens: int, max_tokens: int | None, remaining_nusd: int) -> list[int]:
        """[K] max_tokens each model may be given; 0 where the money left cannot pay one token."""
        asked = max_tokens or self._default_max_tokens
        return [self._clamp(action, prompt_tokens, asked, remaining_nusd) for action in range(len(self._input_price))]

    def _clamp(self, action: int, prompt_tokens: int, asked: int, remaining_nusd: int) -> int:
        limit = self.artefact.catalog.models[action].max_output_tokens or asked
        left_nusd = remaining_nusd - prompt_tokens * self._input_price[action]
        if left_nusd < 0:
            return 0
        price = self._output_price[action]
        return min(asked, limit, math.floor(left_nusd / price)) if price else min(asked, limit)

    def worst_case_nusd(self, action: int, prompt_tokens: int, completion_tokens: int) -> int:
        """Price of a call in nano-dollars, rounded up; exact."""
        return math.ceil(prompt_tokens * self._input_price[action] + completion_tokens * self._output_price[action])

    def cost_nusd(self, action: int, prompt_tokens: int, completion_tokens: int) -> int:
        """True cost of a call, priced as the training logs are."""
        return int(to_nusd(self.artefact.catalog.cost_usd(action, prompt_tokens, completion_tokens)))

    def _allowed(self, estimates: Estimates, clamps: list[int], remaining_nusd: int) -> BoolArray:
        """[K]: affordable among the models that can be paid at all; a free model's cost of 0 always fits."""
        payable = np.array(clamps) > 0
        mean_usd, high_usd = (
            np.where(payable, cost_usd, np.inf) for cost_usd in (estimates.cost_usd, estimates.cost_high_usd)
        )
        allowed: BoolArray = affordable(mean_usd, high_usd, np.array([to_usd(remaining_nusd)]))[0]
        return allowed

    def _reasons(
        self,
        allowed: BoolArray,
        clamps: list[int],
        high_usd: NDArray[np.floating[Any]],
        prompt_tokens: int,
        remaining_nusd: int,
    ) -> dict[str, str]:
        reasons = {}
        for action in np.flatnonzero(~allowed).tolist():
            if clamps[action]:
                why = f"high quantile of its predicted cost ${high_usd[action]:.9f}"
            else:
                why = f"prompt and one token, up to ${self.worst_case_nusd(action, prompt_tokens, 1) / 1e9:.9f},"
            reasons[self.artefact.catalog.names[action]] = f"{why} exceeds remaining ${remaining_nusd / 1e9:.9f}"
        return reasons


def _nusd_per_token(usd_per_m: float) -> Fraction:
    """The price as it is meant, without binary rounding: 0.15 is 150 nano-dollars a token."""
    return Fraction(f"{usd_per_m:.12g}") * 1000


def _read_context(context: Mapping[str, Any], width: int) -> tuple[int, NDArray[np.float64]]:
    """num_turns and summary_sum [width]; those of a first turn when the context is empty."""
    if not context:
        return 0, np.zeros(width)
    summary_sum = np.array(context.get("summary_sum", ()), dtype=np.float64)
    if len(summary_sum) != width:
        raise ArtefactError(
            f"this session was begun under a policy of {len(summary_sum)} summary features, this one has {width}; "
            "begin a new session"
        )
    return context["num_turns"], summary_sum


def advance(context: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """The session's context after this turn."""
    num_turns, summary_sum = _read_context(context, len(decision.summary))
    return {"num_turns": num_turns + 1, "summary_sum": (summary_sum + np.array(decision.summary)).tolist()}
