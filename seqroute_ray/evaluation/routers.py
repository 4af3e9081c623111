"""Baselines that route each turn by itself: they read the query, but plan no budget beyond the mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.fitting import EstimatorConfig, observe
from seqroute_ray.core.mdp import affordable
from seqroute_ray.core.queries import Queries, QueryFeatures
from seqroute_ray.core.ridge import logistic_ridge, sigmoid
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import ReplayData, Turns


@dataclass(frozen=True)
class Myopic:
    """argmax quality - lambda * cost on the estimates; at lambda 0 it is MTRouter's rule (arXiv:2604.23530), greedy."""

    lambda_per_usd: float = 0.0

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        estimates = data.estimates.take(turns.row)
        worth = estimates.quality - self.lambda_per_usd * estimates.cost_usd
        allowed = affordable(estimates.cost_usd, estimates.cost_high_usd, turns.remaining_usd)
        return np.asarray(np.argmax(np.where(allowed, worth, -np.inf), axis=1))


@dataclass(frozen=True)
class Threshold:
    """RouteLLM's rule (arXiv:2406.18665): the strong model where it is estimated to be better by the threshold."""

    weak: int
    strong: int
    threshold: float

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        quality = data.estimates.quality[turns.row]
        return _strong_where(quality[:, self.strong] - quality[:, self.weak] >= self.threshold, self, data, turns)


@dataclass(frozen=True)
class HardTurns:
    """Which queries only the strong model solves, learned from outcomes of both: boundary-guided routing's taxonomy.

    Easy and intractable queries (both or neither solve them) are for the weak model, hard ones for the strong: the
    cheapest successful choice. Source: Budget-Aware Agentic Routing, arXiv:2602.21227, on independent turns.
    """

    features: QueryFeatures
    weights: FloatArray  # [F]

    @classmethod
    def fit(
        cls, features: QueryFeatures, sessions: Sessions, weak: int, strong: int, config: EstimatorConfig
    ) -> "HardTurns":
        """From the turns on which both models were judged; each question counts once."""
        seen = observe(sessions)
        known = np.flatnonzero(np.isfinite(seen.quality[:, [weak, strong]]).all(axis=1))
        hard = (seen.quality[known, strong] > 0.5) & (seen.quality[known, weak] <= 0.5)
        queries = seen.queries.take(known)
        design = features.design(queries, features.summary(queries)).astype(np.float64)
        penalty = features.penalty(config.type_penalty, config.length_penalty, config.quality_penalty)
        return cls(features, logistic_ridge(design, hard.astype(np.float64), penalty))

    def chance(self, queries: Queries) -> NDArray[np.floating]:
        """[N] estimated chance of being hard."""
        return sigmoid(self.features.design(queries, self.features.summary(queries)) @ self.weights)


@dataclass(frozen=True)
class BoundaryGuided:
    """The strong model where a query is hard with at least the given chance, while it fits into what remains."""

    hard: HardTurns
    weak: int
    strong: int
    threshold: float

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        chance = self.hard.chance(data.sessions.queries.take(turns.row))
        return _strong_where(chance >= self.threshold, self, data, turns)


def _strong_where(
    wanted: NDArray[np.bool_], pair: Threshold | BoundaryGuided, data: ReplayData, turns: Turns
) -> IntArray:
    """The strong model where it is wanted and fits, else the weak one."""
    fits = affordable(data.estimates.cost_usd[turns.row], data.estimates.cost_high_usd[turns.row], turns.remaining_usd)[
        :, pair.strong
    ]
    return np.where(wanted & fits, pair.strong, pair.weak)
