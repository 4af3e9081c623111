"""The policies that a sceptic would ask for, and the learned one, behind one protocol."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.mdp import affordable, encode_state
from seqroute_ray.core.policy import QNetwork, lambda_greedy
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import ReplayData, Turns


@dataclass(frozen=True)
class FixedModel:
    """Always the same model."""

    action: int
    name: str

    def act(self, data: ReplayData, turns: Turns) -> IntArray:  # noqa: ARG002
        return np.full(len(turns.row), self.action)


@dataclass(frozen=True)
class RandomModel:
    """A uniformly random model; the same draw for a turn whatever the budget."""

    seed: int = 0
    name: str = "random"

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        draws = np.random.default_rng(self.seed).integers(data.layout.num_models, size=len(data.sessions.action))
        return draws[turns.row]


@dataclass(frozen=True)
class BudgetHeuristic:
    """The dearest model whose mean cost fits into an even split of what remains over the expected turns left."""

    mean_cost_usd: FloatArray  # [K] of the fit part
    name: str = "budget heuristic"

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return even_split(self.mean_cost_usd[None, :], self.mean_cost_usd[None, :], data, turns)


@dataclass(frozen=True)
class SourceTable:
    """The best model by task type: the highest mean quality whose mean cost, for that type, fits into an even split."""

    sources: tuple[str, ...]
    quality: FloatArray  # [R, K] mean by type of task, of the fit part
    cost_usd: FloatArray  # [R, K]
    name: str = "table by source"

    @classmethod
    def fit(cls, sessions: Sessions, quality: NDArray[np.floating], cost_usd: NDArray[np.floating]) -> "SourceTable":
        """From [N, K] outcomes, NaN where not measured; a pair never measured gets the model's mean over all types."""
        names = tuple(np.unique(sessions.source).tolist())
        rows = [sessions.source == name for name in names]
        return cls(names, _means(quality, rows), _means(cost_usd, rows))

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        position = {name: i for i, name in enumerate(self.sources)}
        unseen = len(self.sources)  # a type never seen in training: the mean over types
        quality = np.vstack([self.quality, self.quality.mean(axis=0)])
        cost_usd = np.vstack([self.cost_usd, self.cost_usd.mean(axis=0)])
        types = np.array(
            [position.get(name, unseen) for name in data.sessions.source[turns.row].tolist()], dtype=np.int64
        )
        return even_split(quality[types], cost_usd[types], data, turns)


def _means(values: NDArray[np.floating], rows: list[BoolArray]) -> FloatArray:
    """[R, K] means of the finite values of each set of rows; the column's mean where a set has none."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    overall = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    total = np.stack([filled[mask].sum(axis=0) for mask in rows])
    count = np.stack([known[mask].sum(axis=0) for mask in rows])
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), overall))


def even_split(worth: FloatArray, cost_usd: FloatArray, data: ReplayData, turns: Turns) -> IntArray:
    """The worthiest model that fits into remaining / expected turns left; the cheapest where none does. [n or 1, K]."""
    table = data.layout.expected_turns_left
    share_usd = turns.remaining_usd / table[min(turns.turn, len(table) - 1)]
    fits = cost_usd <= share_usd[:, None]
    best = np.argmax(np.where(fits, worth, -np.inf), axis=1)
    cheapest = np.broadcast_to(np.argmin(cost_usd, axis=1), best.shape)
    return np.where(fits.any(axis=1), best, cheapest)


@dataclass(frozen=True)
class QPolicy:
    """lambda-greedy over a Q-network, among the models that the money left can pay for."""

    network: QNetwork
    penalty: float  # of a bankruptcy, in turns of full quality
    lambda_per_usd: float = 0.0
    name: str = "cql"

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        turn = np.full(len(turns.row), turns.turn)
        state = encode_state(data.layout, data.features[turns.row], turns.remaining_usd, turn, turns.previous_action)
        allowed = affordable(data.estimates.cost_high_usd[turns.row], turns.remaining_usd)
        return lambda_greedy(
            self.network.values(state).q_values(self.penalty),
            data.estimates.cost_usd[turns.row],
            allowed,
            self.lambda_per_usd,
        )
