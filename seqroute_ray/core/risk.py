"""The chance that a session goes bankrupt, by an exact plan over recorded costs instead of a learned head.

Bankruptcies at tight budgets are rare and hang on the tails of costs. A head that learns them by bootstrapping says
3.5 % where 2 % go bankrupt, and at a price of 15 turns a quarter of a point of that error outweighs any quality.
But the dynamic program is small once a turn is nothing but its type of task: over (turn, type, money), with the costs
that each model's answers to such tasks had, tails and all (`risk_plan.py`). A state looks its chances up in its table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray


@dataclass(frozen=True)
class RiskTable:
    """Chances over T turns, R types of task, K models and G amounts of money, which rise by equal factors."""

    chance: NDArray[np.float32]  # [T, R, K, G] of bankruptcy when the model answers and the plan goes on from there
    money_usd: FloatArray  # [G] before the turn
    mean_cost_usd: FloatArray  # [R, K] of an answer

    def at(
        self, share: NDArray[np.floating], turn: IntArray, remaining_usd: FloatArray, cost_usd: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """[N, K] chances of N states. share: [N, R] of types, turn and remaining_usd: [N], cost_usd: [N, K] estimates.

        What a query is estimated to cost above the mean of its type is taken off its money.
        """
        _, num_types, num_models, num_steps = self.chance.shape
        money_usd = remaining_usd[:, None] - (cost_usd - share @ self.mean_cost_usd)
        log_money = np.log(self.money_usd)
        place = (np.log(np.maximum(money_usd, self.money_usd[0])) - log_money[0]) / (log_money[1] - log_money[0])
        place = np.minimum(place, num_steps - 1)
        low = np.minimum(place.astype(np.int64), num_steps - 2)
        at_turn, models = np.minimum(turn, len(self.chance) - 1)[:, None], np.arange(num_models)
        chance = np.zeros(place.shape)
        for kind in range(num_types):
            rows = np.flatnonzero(share[:, kind] > 0)
            if len(rows):
                table, step, above = self.chance[:, kind], low[rows], place[rows] - low[rows]
                below, beyond = (table[at_turn[rows], models, step + more] for more in (0, 1))
                chance[rows] += share[rows, kind, None] * ((1 - above) * below + above * beyond)
        return chance.astype(np.float32)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "RiskTable | None":
        """Inverse of arrays; None of none."""
        return cls(**arrays) if arrays else None  # type: ignore[arg-type]
