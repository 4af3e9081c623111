"""Baselines that plan the budget with a model of the turns to come: the yardsticks of the learned planner.

They see the same estimates (or a table by type of task instead) and the same mask as the learned policy, and know what
it must learn: how long sessions are and what their turns cost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.mdp import affordable
from seqroute_ray.evaluation.replay import ReplayData, Turns

MAX_PLANNED_TURNS = 600  # typical turns that a plan averages over
NUM_BUDGETS = 120  # of a plan's grid, log-spaced
COST_QUANTILES = 8  # of true cost over estimated cost
PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 120)])  # of money, in quality a reference cost


@dataclass(frozen=True)
class TypicalTurns:
    """What a planner may expect of a turn to come: a sample of the fit part."""

    estimates: Estimates  # [n, K]
    cost_ratio: FloatArray  # [COST_QUANTILES] true cost over estimated cost, equally likely
    stay_share: FloatArray  # [T] chance that a session goes on after turn t

    @classmethod
    def of(
        cls, estimates: Estimates, cost_usd: NDArray[np.floating], num_turns: IntArray, seed: int = 0
    ) -> "TypicalTurns":
        """From the fit part's estimates and true costs [N, K] (NaN where not measured) and session lengths [S]."""
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(cost_usd), size=min(len(cost_usd), MAX_PLANNED_TURNS), replace=False)
        ratio = (cost_usd / np.maximum(estimates.cost_usd, 1e-12))[np.isfinite(cost_usd)]
        places = (np.arange(COST_QUANTILES) + 0.5) / COST_QUANTILES
        alive = np.array([np.sum(num_turns > t) for t in range(int(num_turns.max()) + 1)])
        return cls(estimates.take(rows), np.quantile(ratio, places), alive[1:] / np.maximum(alive[:-1], 1))


@dataclass(frozen=True)
class Pacing:
    """The fluid relaxation: argmax quality - price * cost, at the price whose mean spending is an even split.

    slack: share of the even split that is spent; below 1 keeps a reserve.
    """

    typical: TypicalTurns
    reference_cost_usd: float
    slack: float = 1.0

    @cached_property
    def spending_usd(self) -> FloatArray:
        """[len(PRICES)] mean cost of a typical turn at each price; falling."""
        estimates = self.typical.estimates
        rows = np.arange(len(estimates.quality))
        chosen = [_priced(estimates, np.full(len(rows), price / self.reference_cost_usd)) for price in PRICES]
        return np.minimum.accumulate([estimates.cost_usd[rows, action].mean() for action in chosen])

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        table = data.layout.expected_turns_left
        share_usd = self.slack * turns.remaining_usd / table[min(turns.turn, len(table) - 1)]
        price = np.interp(-share_usd, -self.spending_usd, PRICES) / self.reference_cost_usd
        return _priced(data.estimates.take(turns.row), price, turns.remaining_usd)


def _priced(estimates: Estimates, price_per_usd: FloatArray, remaining_usd: FloatArray | None = None) -> IntArray:
    """argmax quality - price * cost among models that fit into what remains (None: all)."""
    worth = estimates.quality - price_per_usd[:, None] * estimates.cost_usd
    if remaining_usd is not None:
        worth = np.where(affordable(estimates.cost_usd, estimates.cost_high_usd, remaining_usd), worth, -np.inf)
    return np.asarray(np.argmax(worth, axis=1))


@dataclass(frozen=True)
class BudgetPlan:
    """Stochastic dynamic programming over (turn, money left), with turns drawn independently from typical ones."""

    typical: TypicalTurns
    reference_cost_usd: float
    penalty: float = 0.0  # of a bankruptcy, in turns of full quality

    @cached_property
    def budgets_usd(self) -> FloatArray:
        return np.concatenate([[0.0], np.geomspace(1e-4, 3.0, NUM_BUDGETS)]) * self.reference_cost_usd

    @cached_property
    def value(self) -> FloatArray:
        """[T + 1, NUM_BUDGETS + 1] expected quality still to come before a turn is seen."""
        horizon, typical = len(self.typical.stay_share), self.typical.estimates
        value = np.zeros((horizon + 1, len(self.budgets_usd)))
        for t in range(horizon - 1, -1, -1):
            for b, budget_usd in enumerate(self.budgets_usd):
                left = np.full(len(typical.quality), budget_usd)
                q_values = self._q_values(typical, left, self.typical.stay_share[t], value[t + 1])
                value[t, b] = np.max(
                    np.where(affordable(typical.cost_usd, typical.cost_high_usd, left), q_values, -np.inf), axis=1
                ).mean()
        return value

    def q_values(self, estimates: Estimates, remaining_usd: FloatArray, turn: int) -> FloatArray:
        """[n, K] of turns whose estimates are known."""
        t = min(turn, len(self.typical.stay_share) - 1)
        return self._q_values(estimates, remaining_usd, self.typical.stay_share[t], self.value[t + 1])

    def _q_values(self, estimates: Estimates, remaining_usd: FloatArray, stay: float, value: FloatArray) -> FloatArray:
        after = remaining_usd[:, None, None] - estimates.cost_usd[:, :, None] * self.typical.cost_ratio
        to_come = np.interp(np.maximum(after, 0.0), self.budgets_usd, value)
        outcome = np.where(after >= 0, estimates.quality[:, :, None] + stay * to_come, -self.penalty)
        return np.asarray(outcome.mean(axis=2))


@dataclass(frozen=True)
class DynamicProgram:
    """The plan's best model on the estimates of each turn."""

    plan: BudgetPlan

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return _planned(self.plan, data.estimates.take(turns.row), turns)


def _planned(plan: BudgetPlan, estimates: Estimates, turns: Turns) -> IntArray:
    q_values = plan.q_values(estimates, turns.remaining_usd, turns.turn)
    allowed = affordable(estimates.cost_usd, estimates.cost_high_usd, turns.remaining_usd)
    return np.asarray(np.argmax(np.where(allowed, q_values, -np.inf), axis=1))


@dataclass(frozen=True)
class TypeTable:
    """Mean outcomes by type of task: what a router knows that reads nothing but the type."""

    types: tuple[str, ...]
    estimates: Estimates  # [R + 1, K]; the last row is the mean over types, for types never seen

    @classmethod
    def fit(
        cls, source: NDArray[np.str_], quality: NDArray[np.floating], cost_usd: NDArray[np.floating], quantile: float
    ) -> "TypeTable":
        """From [N, K] outcomes, NaN where not measured; a pair never measured gets the model's mean over all types."""
        types = tuple(np.unique(source).tolist())
        groups = [source == name for name in types]

        def rows(values: NDArray[np.floating], reduce: str) -> NDArray[np.float32]:
            overall = _finite(values, reduce, quantile)
            cells = [_finite(values[group], reduce, quantile) for group in groups]
            return np.stack([*(np.where(np.isfinite(cell), cell, overall) for cell in cells), overall]).astype(
                np.float32
            )

        mean_quality = rows(quality, "mean")
        high_usd = rows(cost_usd, "quantile")
        no_runaway = np.zeros_like(mean_quality)  # plans ask for costs only
        return cls(types, Estimates(mean_quality, rows(cost_usd, "mean"), high_usd, no_runaway, high_usd))

    def estimates_of(self, source: NDArray[np.str_]) -> Estimates:
        """[n, K] outcomes of each type."""
        position = {name: i for i, name in enumerate(self.types)}
        rows = np.array([position.get(name, len(self.types)) for name in source.tolist()], dtype=np.int64)
        return self.estimates.take(rows)


def _finite(values: NDArray[np.floating], reduce: str, quantile: float) -> FloatArray:
    """[K] mean or quantile of the finite values of each column; NaN where there is none."""
    columns = [column[np.isfinite(column)] for column in values.T]
    if reduce == "mean":
        return np.array([column.mean() if len(column) else np.nan for column in columns])
    return np.array([np.quantile(column, quantile) if len(column) else np.nan for column in columns])


@dataclass(frozen=True)
class TableDynamicProgram:
    """The plan's best model, on the table's outcomes of the turn's type."""

    plan: BudgetPlan  # of typical turns as the table sees them
    table: TypeTable

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return _planned(self.plan, self.table.estimates_of(data.sessions.source[turns.row]), turns)
