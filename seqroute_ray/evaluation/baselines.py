"""The simplest policies, and the learned one, behind one protocol; `routers` and `planners` have the others."""

from dataclasses import dataclass, replace

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.mdp import affordable, encode_state
from seqroute_ray.core.policy import QNetwork, RiskPrices, lambda_greedy
from seqroute_ray.evaluation.replay import ReplayData, Turns


@dataclass(frozen=True)
class FixedModel:
    """Always the same model."""

    action: int

    def act(self, data: ReplayData, turns: Turns) -> IntArray:  # noqa: ARG002
        return np.full(len(turns.row), self.action)


@dataclass(frozen=True)
class RandomModel:
    """A uniformly random model; the same draw for a turn whatever the budget."""

    seed: int = 0

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        draws = np.random.default_rng(self.seed).integers(data.layout.num_models, size=len(data.sessions.action))
        return draws[turns.row]


@dataclass(frozen=True)
class StaticMixture:
    """One of two models by a coin: the straight line between them in cost and quality."""

    cheap: int
    dear: int
    dear_share: float
    seed: int = 0

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        coin = np.random.default_rng(self.seed).random(len(data.sessions.action))
        return np.where(coin[turns.row] < self.dear_share, self.dear, self.cheap)


@dataclass(frozen=True)
class FirstLarge:
    """The dear model on a session's first turns, as long as it fits; then the cheap one. It spends early."""

    cheap: int
    dear: int
    num_first: int

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        fits = affordable(
            data.estimates.cost_usd[turns.row], data.estimates.cost_high_usd[turns.row], turns.remaining_usd
        )[:, self.dear]
        return np.where(fits & (turns.turn < self.num_first), self.dear, self.cheap)


@dataclass(frozen=True)
class BudgetHeuristic:
    """The dearest model whose mean cost fits into an even split of what remains over the expected turns left.

    slack: how many times the even split it may cost.
    """

    mean_cost_usd: FloatArray  # [K] of the fit part
    slack: float = 1.0

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        table = data.layout.expected_turns_left
        share_usd = self.slack * turns.remaining_usd / table[min(turns.turn, len(table) - 1)]
        fits = self.mean_cost_usd <= share_usd[:, None]
        dearest = np.argmax(np.where(fits, self.mean_cost_usd, -np.inf), axis=1)
        return np.where(fits.any(axis=1), dearest, np.argmin(self.mean_cost_usd))


@dataclass(frozen=True)
class QPolicy:
    """lambda-greedy over a Q-network, among the models that the money left can pay for."""

    network: QNetwork
    risk: RiskPrices  # the price of a bankruptcy by budget, in multiples of the reference cost
    lambda_per_usd: float = 0.0
    plans: bool = True  # looks the chance of bankruptcy up in the estimator's plan, if it has one

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        turn = np.full(len(turns.row), turns.turn)
        features = data.features.take(turns.row)
        values = self.network.values(encode_state(data.layout, features, turns.remaining_usd, turn))
        if self.plans and data.risk is not None:
            planned = data.risk.at(turns.row, turn, turns.remaining_usd, features.estimates.cost_usd)
            values = replace(values, bankruptcy=planned)
        return lambda_greedy(
            values.q_values(self.risk.penalty(turns.budget_usd / data.layout.reference_cost_usd)),
            features.estimates.cost_usd,
            affordable(features.estimates.cost_usd, features.estimates.cost_high_usd, turns.remaining_usd),
            self.lambda_per_usd,
        )
