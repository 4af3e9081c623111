"""A small budgeted MDP whose optimum dynamic programming knows."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.sessions import Sessions
from tests.support import make_sessions

NUM_TURNS = 6
UNIT_USD = 0.001
COST_UNITS = (1, 4)  # cheap, strong
QUALITY = ((0.9, 0.95), (0.1, 0.9))  # by type of turn: easy, hard; cheap, strong
BUDGETS_UNITS = (13, 17, 20)  # strong on every hard turn costs 15 on average: it takes planning


@dataclass(frozen=True)
class ToyMdp:
    """Turns are easy or hard with equal chance; the embedding tells which."""

    num_sessions: int
    seed: int

    def sessions(self) -> Sessions:
        rng = np.random.default_rng(self.seed)
        num_turns = self.num_sessions * NUM_TURNS
        kind = rng.integers(2, size=num_turns)
        embedding = np.eye(4)[kind] + rng.normal(scale=0.01, size=(num_turns, 4))
        base = make_sessions([NUM_TURNS] * self.num_sessions, num_models=2, seed=self.seed)
        prices = (ModelSpec(name=f"model-{i}", usd_per_m_input=c, usd_per_m_output=c) for i, c in enumerate(COST_UNITS))
        quality = np.array(QUALITY, dtype=np.float32)[kind]
        cost_nusd = np.broadcast_to(to_nusd(UNIT_USD * np.array(COST_UNITS)), (num_turns, 2))
        rows = np.arange(num_turns)
        return replace(
            base,
            catalog=Catalog(tuple(prices)),
            embedding=embedding.astype(np.float16),
            quality=quality[rows, base.action],
            cost_nusd=cost_nusd[rows, base.action],
            prompt_tokens=np.zeros(num_turns, dtype=np.int64),
            outcome_quality=quality,
            outcome_cost_nusd=np.array(cost_nusd),
            source=np.array(["easy", "hard"])[kind],
        )


@cache
def best_value(turns_left: int, budget_units: int) -> float:
    """Expected total quality of the optimal policy."""
    return sum(0.5 * max(action_values(kind, turns_left, budget_units)) for kind in (0, 1)) if turns_left else 0.0


def action_values(kind: int, turns_left: int, budget_units: int) -> list[float]:
    return [
        QUALITY[kind][a] + best_value(turns_left - 1, budget_units - cost) if cost <= budget_units else 0.0
        for a, cost in enumerate(COST_UNITS)
    ]
