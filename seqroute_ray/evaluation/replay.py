"""Replay sessions whose every outcome is known, under hard budgets: what each policy would have spent and earned.

A turn whose cost exceeds what remains ends the session: its cost is not spent, and it and all later turns count 0.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import Estimates, OutcomeEstimator
from seqroute_ray.core.mdp import StateLayout, TurnFeatures, running_mean
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.sessions import Sessions

UNSERVED = -2  # in ReplayResult.action: the session had ended before this turn


@dataclass(frozen=True)
class PlannedRisk:
    """Chances of bankruptcy by the estimator's plan."""

    table: RiskTable
    share: NDArray[np.float32]  # [N, R] of each type of task in the turns

    def at(
        self, rows: IntArray, turn: IntArray, remaining_usd: FloatArray, cost_usd: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """[n, K] of some turns; see RiskTable.at."""
        return self.table.at(self.share[rows], turn, remaining_usd, cost_usd)


@dataclass(frozen=True)
class ReplayData:
    """Sessions with outcomes, and what a policy may know of their turns: estimates of an estimator fitted elsewhere."""

    sessions: Sessions
    layout: StateLayout
    features: TurnFeatures  # [N]
    risk: PlannedRisk | None = None  # None: the estimator has no plan

    @property
    def estimates(self) -> Estimates:
        """[N, K] of every turn."""
        return self.features.estimates

    @classmethod
    def prepare(cls, sessions: Sessions, estimator: OutcomeEstimator, layout: StateLayout) -> "ReplayData":
        """Raises DataError when the sessions do not carry every model's outcome."""
        if not sessions.has_outcomes:
            raise DataError(
                "replay needs the outcome of every model for every turn; log them, or `sample --with-outcomes`"
            )
        return cls.of_log(sessions, estimator, layout)

    @classmethod
    def of_log(cls, sessions: Sessions, estimator: OutcomeEstimator, layout: StateLayout) -> "ReplayData":
        """Of sessions with or without outcomes: what policies see, not what they would have got."""
        queries = sessions.queries
        summary = estimator.features.summary(queries)
        estimates = estimator.predict_from(summary, queries, sessions.catalog)
        features = TurnFeatures(estimates, running_mean(summary, sessions.offsets))
        risk = None if estimator.risk is None else PlannedRisk(estimator.risk, summary[:, :-1])
        return cls(sessions, layout, features, risk)


def check_pool(sessions: Sessions, artefact: PolicyArtefact, path: Path) -> None:
    """Raises DataError when the sessions are of another pool, order or prices than the policy."""
    if sessions.catalog.fingerprint != artefact.catalog.fingerprint:
        raise DataError(
            f"{path}: pool {', '.join(sessions.catalog.names)} or its prices differ from the policy's "
            f"({', '.join(artefact.catalog.names)})"
        )


@dataclass(frozen=True)
class Turns:
    """One turn of many sessions at once, as a policy sees it: nothing of the outcome, nothing of the length."""

    row: IntArray  # [n] rows of data.sessions
    turn: int
    remaining_usd: FloatArray  # [n]
    budget_usd: FloatArray  # [n] of the whole session


class Policy(Protocol):
    """Chooses the model of a turn."""

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        """[n] actions."""
        ...


@dataclass(frozen=True)
class ReplayResult:
    """Outcome of one policy under one budget a session."""

    action: IntArray  # [N] taken; UNSERVED where the session had ended
    quality: NDArray[np.float32]  # [N] 0 where unserved or bankrupting
    cost_nusd: IntArray  # [N] spent
    bankrupt: BoolArray  # [S]
    bankrupting: BoolArray  # [N] the turn that ended a bankrupt session
    remaining_nusd: IntArray  # [N] before the turn


def replay(policy: Policy, data: ReplayData, budget_nusd: IntArray) -> ReplayResult:
    """Walk all sessions turn by turn. budget_nusd: [S]."""
    sessions, num_turns = data.sessions, data.sessions.num_turns
    num_rows = len(sessions.action)
    action = np.full(num_rows, UNSERVED, dtype=np.int64)
    quality = np.zeros(num_rows, dtype=np.float32)
    spent, remaining_before = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
    remaining = budget_nusd.astype(np.int64)
    bankrupt, bankrupting = np.zeros(sessions.num_sessions, dtype=np.bool_), np.zeros(num_rows, dtype=np.bool_)
    for t in range(int(num_turns.max())):
        live = np.flatnonzero((num_turns > t) & ~bankrupt)
        rows = sessions.offsets[live] + t
        chosen = policy.act(data, Turns(rows, t, to_usd(remaining[live]), to_usd(budget_nusd[live])))
        cost = sessions.outcome_cost_nusd[rows, chosen]
        served = cost <= remaining[live]
        remaining_before[rows] = remaining[live]
        action[rows] = chosen
        quality[rows] = np.where(served, sessions.outcome_quality[rows, chosen], 0.0)
        spent[rows] = np.where(served, cost, 0)
        remaining[live] -= spent[rows]
        bankrupt[live] = bankrupting[rows] = ~served
    return ReplayResult(action, quality, spent, bankrupt, bankrupting, remaining_before)
