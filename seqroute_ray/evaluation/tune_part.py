"""Figures of a Q-network on the tune part while it is still learning: a vectorised replay at every budget."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.mdp import StateLayout
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import QNetwork, RiskPrices
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.evaluation.aiq import aiq
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.config import BUDGETS
from seqroute_ray.evaluation.replay import ReplayData, replay

MIN_COST_USD = 1e-9  # of a turn, for the logarithm


@dataclass(frozen=True)
class TunePart:
    """Replays the tune part; cheap to ship to another process, which reads the sessions by itself."""

    sessions: Path  # with every model's outcome; all of them where they name no parts
    catalog: Catalog
    estimator: OutcomeEstimator
    layout: StateLayout
    penalty: float  # of a bankruptcy
    budgets: tuple[float, ...] = BUDGETS  # multiples of the reference cost

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def data(self) -> ReplayData:
        """Raises DataError when the sessions are of another pool or lack outcomes."""
        sessions = read_sessions(self.sessions).of_part("tune")
        if sessions.catalog.fingerprint != self.catalog.fingerprint:
            raise DataError(
                f"{self.sessions}: pool {', '.join(sessions.catalog.names)} or its prices differ from the dataset's "
                f"({', '.join(self.catalog.names)}); import it with the same --models and prices"
            )
        return ReplayData.prepare(sessions, self.estimator, self.layout)

    def __call__(self, network: QNetwork) -> dict[str, float]:
        """AIQ of the budgets' frontier over cost and over its logarithm; means over budgets of the other figures."""
        policy, sessions = QPolicy(network, RiskPrices((1.0,), (self.penalty,))), self.data.sessions
        results = []
        for budget in self.budgets:
            budget_nusd = np.full(sessions.num_sessions, to_nusd(budget * self.layout.reference_cost_usd))
            results.append(replay(policy, self.data, budget_nusd))
        cost = np.array([to_usd(result.cost_nusd).mean() for result in results])
        quality = np.array([result.quality.mean(dtype=np.float64) for result in results])
        single_usd = np.maximum(to_usd(sessions.outcome_cost_nusd).mean(axis=0), MIN_COST_USD)
        lowest, highest = float(single_usd.min()), float(single_usd.max())
        return {
            "aiq": aiq(cost, quality, lowest, highest, log_cost=False),
            "aiq_log": aiq(cost, quality, lowest, highest, log_cost=True),
            "quality": float(quality.mean()),
            "cost_usd_per_turn": float(cost.mean()),
            "bankruptcy_rate": float(np.mean([result.bankrupt.mean() for result in results])),
        }
