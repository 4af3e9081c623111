"""A session-budget MDP made of the bundled outcomes, small enough to be solved exactly: the scale of two benchmarks.

    python benchmarks/budget_mdp.py

A session has NUM_TURNS turns; each asks a random question of the fit part, of which only the type of task is known, and
the model that answers it has the measured quality and cost (in whole units of money, rounded at random so that the mean
stays). A turn that costs more than what remains ends the session and counts 0. So type, turn and units left are all
there is to know, and dynamic programming over them is exact: for the optimum, and for the value of any policy.
Ends with one JSON line: mean quality a turn of the optimum and of each model alone, by budget.
"""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.mdp import REFERENCE_TURNS
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL

NUM_TURNS = 8
NUM_UNITS = 400  # of money in the reference cost
BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)  # multiples of the reference cost


@dataclass(frozen=True)
class BudgetMdp:
    """Q questions of R types, answered by K models."""

    catalog: Catalog
    types: NDArray[np.str_]  # [R]
    question_type: IntArray  # [Q]
    quality: FloatArray  # [Q, K]
    cost_units: FloatArray  # [Q, K], before rounding
    unit_usd: float

    @classmethod
    def bundled(cls) -> "BudgetMdp":
        outcomes = load_outcomes().select(DEFAULT_POOL)
        fit = outcomes.part == "fit"
        cost_usd = outcomes.cost_usd[fit]
        reference_usd = REFERENCE_TURNS * float(cost_usd.mean(axis=0).max())
        unit_usd = float(to_usd(to_nusd(reference_usd / NUM_UNITS)))  # whole nano-dollars
        types, question_type = np.unique(outcomes.source[fit], return_inverse=True)
        quality = outcomes.quality[fit].astype(np.float64)
        return cls(outcomes.catalog, types, question_type, quality, cost_usd / unit_usd, unit_usd)

    @property
    def num_models(self) -> int:
        return len(self.catalog)

    @property
    def reference_cost_usd(self) -> float:
        return NUM_UNITS * self.unit_usd

    @cached_property
    def type_shares(self) -> FloatArray:
        """[R]."""
        return np.bincount(self.question_type) / len(self.question_type)

    @cached_property
    def laws(self) -> tuple[FloatArray, FloatArray]:
        """[R, K, NUM_UNITS + 1] chance of each cost, and mean quality times that chance; dearer turns never fit."""
        chance = np.zeros((len(self.types), self.num_models, NUM_UNITS + 2))
        quality = np.zeros_like(chance)
        low = np.floor(self.cost_units).astype(np.int64)
        for units, weight in ((low, low + 1 - self.cost_units), (low + 1, self.cost_units - low)):
            cell = (self.question_type[:, None], np.arange(self.num_models), np.minimum(units, NUM_UNITS + 1))
            np.add.at(chance, cell, weight)
            np.add.at(quality, cell, weight * self.quality)
        num_questions = np.bincount(self.question_type)[:, None, None]
        return (chance / num_questions)[..., :-1], (quality / num_questions)[..., :-1]

    def action_values(self, following: FloatArray) -> FloatArray:
        """[R, K, NUM_UNITS + 1] of each model with u units left, given the value [NUM_UNITS + 1] of what follows."""
        chance, quality = self.laws
        num_cells = NUM_UNITS + 1
        now = np.cumsum(quality, axis=-1)
        later = [[np.convolve(law, following)[:num_cells] for law in of_type] for of_type in chance]
        return np.asarray(now + later)

    def optimum(self) -> tuple[FloatArray, IntArray]:
        """Values [NUM_UNITS + 1] of a whole session, and the actions [NUM_TURNS, R, NUM_UNITS + 1]."""
        return self._solve(None)

    def value_of(self, actions: IntArray) -> FloatArray:
        """[NUM_UNITS + 1] of a policy [NUM_TURNS, R, NUM_UNITS + 1], from the first turn on."""
        return self._solve(actions)[0]

    def _solve(self, actions: IntArray | None) -> tuple[FloatArray, IntArray]:
        value, chosen = np.zeros(NUM_UNITS + 1), []
        for turn in reversed(range(NUM_TURNS)):
            of_action = self.action_values(value)
            best = of_action.argmax(axis=1) if actions is None else actions[turn]
            value = self.type_shares @ np.take_along_axis(of_action, best[:, None], axis=1)[:, 0]
            chosen.append(best)
        return value, np.stack(chosen[::-1])


def at_budgets(value: FloatArray) -> FloatArray:
    """[len(BUDGETS)] quality a turn, from values [NUM_UNITS + 1] of a session."""
    return np.asarray(value[np.rint(np.array(BUDGETS) * NUM_UNITS).astype(np.int64)] / NUM_TURNS)


def main() -> None:
    mdp = BudgetMdp.bundled()
    shape = (NUM_TURNS, len(mdp.types), NUM_UNITS + 1)
    alone = {name: mdp.value_of(np.full(shape, k)) for k, name in enumerate(mdp.catalog.names)}
    values = {"optimum": mdp.optimum()[0], **alone}
    rounded = {name: [round(float(x), 4) for x in at_budgets(value)] for name, value in values.items()}
    print(json.dumps({"budgets": BUDGETS, "num_turns": NUM_TURNS, "num_units": NUM_UNITS, **rounded}))


if __name__ == "__main__":
    main()
