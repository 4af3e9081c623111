"""A policy artefact compiled for one turn at a time: what serving asks.

The batch path (`queries`, `estimator`, `mdp`, `policy`) defines what a turn is worth. For one turn it is two hundred
numpy calls on a handful of numbers, and the calls cost more than the numbers. Here the same formulas are one product
with the embedding, plain arithmetic on the few numbers of each model, and one pass through both heads.
tests/core/test_compiled_policy.py holds the two together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import prices
from seqroute_ray.core.fused_network import FusedNetwork
from seqroute_ray.core.mdp import (
    MIN_BUDGET_SHARE,
    MIN_COST_USD,
    MIN_RUNAWAY,
    MIN_TURNS_AFTER,
    NUM_AFTER,
    REFERENCE_TURNS,
    RUNAWAY_BLUR,
)
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.queries import MAX_LENGTH
from seqroute_ray.core.risk import RiskTable

MAX_LOGIT = 30.0  # as in ridge.sigmoid
MAX_LOG = 88.7  # of a float32: the batch path has infinite costs there


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn, and what is left of its session and known of its earlier turns."""

    embedding: NDArray[np.floating]  # [D]
    task_type: str  # as the caller names it; queries.UNKNOWN_TYPE where it does not
    prompt_tokens: int  # 0 where unknown
    remaining_usd: float
    num_earlier: int  # turns before this one
    earlier_summary: Sequence[float]  # [R + 1] sum of their QueryFeatures.summary


class Outlook(NamedTuple):
    """What the policy expects of a turn with each of K models."""

    summary: list[float]  # [R + 1] QueryFeatures.summary of the turn
    cost_usd: list[float]  # [K] mean
    cost_high_usd: list[float]  # [K] high quantile
    quality: list[float]  # [K] expected sum from this turn on
    bankruptcy: list[float]  # [K] chance that the session goes bankrupt

    def q_values(self, penalty: float) -> list[float]:
        """[K] of policy.Values."""
        return [quality - penalty * chance for quality, chance in zip(self.quality, self.bankruptcy, strict=True)]


class _Model(NamedTuple):
    """What the estimator knows of one model beside its regressions."""

    usd_per_prompt_token: float
    usd_per_token: float
    log_mean_shift: float
    high_deviations: float
    runaway_usd: float  # of a typical runaway answer


class _Estimates(NamedTuple):
    """estimator.Estimates of one query, each [K]."""

    quality: list[float]
    cost_usd: list[float]
    cost_high_usd: list[float]
    runaway: list[float]
    runaway_cost_usd: list[float]


class CompiledPolicy:
    """Remembers no turn: threads may share it."""

    def __init__(self, artefact: PolicyArtefact) -> None:
        estimator, features, layout = artefact.estimator, artefact.estimator.features, artefact.layout
        self._num_types, self._num_dims = features.num_types, features.num_dims
        self._type_share = dict(zip(features.types.tolist(), np.eye(features.num_types).tolist(), strict=True))
        self._type_intercepts = features.type_weights[-1].tolist()
        self._log_mean, self._log_deviation = features.log_tokens.tolist()
        self._typical_tokens = features.typical_tokens
        self._of_terms, of_embedding = estimator.regressions  # [4 K, 2 R]
        self._of_embedding = np.concatenate([features.type_weights[:-1].T, of_embedding])  # [R + 4 K, D]
        self._models = _models(artefact)
        self._turns_left, self._reference_usd = layout.expected_turns_left, layout.reference_cost_usd
        self._network, self._estimate_weight = FusedNetwork(artefact.network), artefact.network.estimate_weight
        self._risk = None if estimator.risk is None else _CompiledRisk(estimator.risk)

    def outlook(self, turn: Turn) -> Outlook:
        """Raises DataError when the embedding has not the fitted width."""
        if turn.embedding.shape != (self._num_dims,):
            raise DataError(
                f"the estimator was fitted on {self._num_dims}-d embeddings, got shape {turn.embedding.shape}"
            )
        fitted = np.dot(self._of_embedding, turn.embedding.astype(np.float32, copy=False))
        summary = self._summary(turn, fitted)
        estimates = self._estimates(turn, summary, fitted[self._num_types :])
        turns_left = self._turns_left[min(turn.num_earlier, len(self._turns_left) - 1)]
        context = self._context(turn, summary, turns_left)
        outputs = self._network.outputs(context, self._after(turn, estimates, turns_left))
        weight = self._estimate_weight
        quality = [weight * now + beyond for now, (beyond, _) in zip(estimates.quality, outputs, strict=True)]
        if self._risk is None:
            bankruptcy = [_sigmoid(logit) for _, logit in outputs]
        else:
            bankruptcy = self._risk.at(summary[:-1], turn, estimates.cost_usd)
        return Outlook(summary, estimates.cost_usd, estimates.cost_high_usd, quality, bankruptcy)

    def _summary(self, turn: Turn, fitted: NDArray[np.float32]) -> list[float]:
        """[R + 1] QueryFeatures.summary. fitted: the types' logits [R] first."""
        share = self._type_share.get(turn.task_type)
        if share is None:
            logits = fitted[: self._num_types].tolist()
            chance = [_sigmoid(logit + b) for logit, b in zip(logits, self._type_intercepts, strict=True)]
            total = sum(chance)
            share = [x / total for x in chance]
        length = 0.0
        if turn.prompt_tokens > 0:
            length = (math.log(turn.prompt_tokens) - self._log_mean) / self._log_deviation
        return [*share, min(max(length, -MAX_LENGTH), MAX_LENGTH)]

    def _estimates(self, turn: Turn, summary: list[float], of_embedding: NDArray[np.float32]) -> _Estimates:
        """OutcomeEstimator.predict_from."""
        *share, length = summary
        terms = np.array(share + [length * x for x in share], dtype=np.float32)
        quality, runaway, log_tokens, log_spread = (
            (of_embedding + np.dot(self._of_terms, terms)).reshape(4, -1).tolist()
        )
        known = turn.prompt_tokens > 0 and self._typical_tokens > 0
        prompt_tokens = turn.prompt_tokens if known else self._typical_tokens
        costs_usd, high_usd, runaway_usd = [], [], []
        for model, mean, spread in zip(self._models, log_tokens, log_spread, strict=True):
            per_prompt_token, per_token, mean_shift, high_deviations, typical_runaway_usd = model
            prompt_usd = prompt_tokens * per_prompt_token
            high = prompt_usd + per_token * _exp(mean + _exp(spread) * high_deviations)
            costs_usd.append(prompt_usd + per_token * _exp(mean + mean_shift))
            high_usd.append(high)
            runaway_usd.append(max(prompt_usd + typical_runaway_usd, high))
        quality, runaway = ([_sigmoid(logit) for logit in logits] for logits in (quality, runaway))
        return _Estimates(quality, costs_usd, high_usd, runaway, runaway_usd)

    def _context(self, turn: Turn, summary: list[float], turns_left: float) -> NDArray[np.float32]:
        """[num_context] of mdp.encode_state, and a 1."""
        share = max(turn.remaining_usd / self._reference_usd, MIN_BUDGET_SHARE)
        log_share, num_turns = math.log(share), turn.num_earlier + 1
        money = [
            log_share / 2 + 1,
            min(share, 1.0),
            min(10 * share, 1.0),
            (log_share + math.log(REFERENCE_TURNS / turns_left)) / 2,
            turn.num_earlier / 12,
            turns_left / 12,
        ]
        history = [(before + now) / num_turns for before, now in zip(turn.earlier_summary, summary, strict=True)]
        return np.array([*money, *history, 1.0], dtype=np.float32)

    def _after(self, turn: Turn, estimates: _Estimates, turns_left: float) -> NDArray[np.float32]:
        """[K, NUM_AFTER] of mdp.after_state."""
        log, remaining_usd, reference_usd = math.log, turn.remaining_usd, self._reference_usd
        log_remaining = log(max(remaining_usd, MIN_COST_USD))
        half_log_turns_after = log(max(turns_left - 1, MIN_TURNS_AFTER) / REFERENCE_TURNS) / 2
        after: list[float] = []
        for _, mean_usd, high_usd, runaway, runaway_usd in zip(*estimates, strict=True):
            cost_usd, cost_high_usd = max(mean_usd, MIN_COST_USD), max(high_usd, MIN_COST_USD)
            left = max((remaining_usd - cost_usd) / reference_usd, MIN_BUDGET_SHARE)
            left_high = max((remaining_usd - cost_high_usd) / reference_usd, MIN_BUDGET_SHARE)
            half_log_left = log(left) / 2
            excess = log(max(runaway_usd, MIN_COST_USD)) - log_remaining
            after += (
                log(cost_high_usd / cost_usd),
                half_log_left + 1,
                log(left_high) / 2 + 1,
                half_log_left - half_log_turns_after,
                min(10 * left, 1.0),
                log(runaway * _sigmoid(excess / RUNAWAY_BLUR) + MIN_RUNAWAY) / 2 + 2,
            )
        return np.array(after, dtype=np.float32).reshape(-1, NUM_AFTER)


class _CompiledRisk:
    """A risk.RiskTable for one state at a time."""

    def __init__(self, table: RiskTable) -> None:
        self._chance, self._mean_cost_usd = table.chance, table.mean_cost_usd.tolist()
        self._least_usd, self._last = float(table.money_usd[0]), len(table.money_usd) - 1
        self._log_least = math.log(self._least_usd)
        self._log_step = math.log(float(table.money_usd[1])) - self._log_least

    def at(self, share: list[float], turn: Turn, cost_usd: list[float]) -> list[float]:
        """[K] of RiskTable.at."""
        by_type = self._chance[min(turn.num_earlier, len(self._chance) - 1)]
        of_types = [(x, by_type[kind], self._mean_cost_usd[kind]) for kind, x in enumerate(share) if x > 0]
        chances = []
        for model, cost in enumerate(cost_usd):
            typical_usd = 0.0
            for x, _, mean in of_types:
                typical_usd += x * mean[model]
            money_usd = max(turn.remaining_usd - (cost - typical_usd), self._least_usd)
            place = min((math.log(money_usd) - self._log_least) / self._log_step, self._last)
            low = min(int(place), self._last - 1)
            above, chance = place - low, 0.0
            for x, at, _ in of_types:
                chance += x * ((1 - above) * at.item(model, low) + above * at.item(model, low + 1))
            chances.append(chance)
        return chances


def _models(artefact: PolicyArtefact) -> list[_Model]:
    estimator, (per_prompt_token, per_token) = artefact.estimator, prices(artefact.catalog)
    runaway_usd = per_token * np.exp(estimator.runaway_log_tokens)
    columns = (per_prompt_token, per_token, estimator.log_mean_shift, estimator.high_deviations, runaway_usd)
    return [_Model(*row) for row in np.stack(columns, axis=1).tolist()]


def _sigmoid(z: float) -> float:
    """ridge.sigmoid."""
    return 1.0 / (1.0 + math.exp(-z if z > -MAX_LOGIT else MAX_LOGIT))


def _exp(z: float) -> float:
    return math.exp(z if z < MAX_LOG else MAX_LOG)


def affordable(cost_usd: list[float], cost_high_usd: list[float], remaining_usd: float) -> list[bool]:
    """mdp.affordable, each [K]."""
    fits = [high <= remaining_usd for high in cost_high_usd]
    fits[cost_usd.index(min(cost_usd))] = True
    return fits


def lambda_greedy(q_values: list[float], cost_usd: list[float], allowed: list[bool], lambda_per_usd: float) -> int:
    """policy.lambda_greedy, each [K]."""
    scores = [
        q - lambda_per_usd * cost if fits else -math.inf
        for q, cost, fits in zip(q_values, cost_usd, allowed, strict=True)
    ]
    return scores.index(max(scores))
