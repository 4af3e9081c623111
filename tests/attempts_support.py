"""Small attempts that several test files start from."""

from collections.abc import Sequence

import numpy as np

from seqroute_ray.core.attempts import ANSWER, INVALID, NONE, TOOL, Attempts, TaskStates
from tests.support import make_catalog

USD = 10**9  # in nano-dollars


def make_attempts(num_tasks: int, num_models: int = 2, seed: int = 0) -> Attempts:
    """Random attempts of at most three turns; types alternate."""
    rng = np.random.default_rng(seed)
    num_turns = rng.integers(1, 4, size=(num_tasks, num_models))
    taken = np.arange(3) < num_turns[..., None]
    return Attempts(
        catalog=make_catalog(num_models),
        task_id=np.array([f"t{i}" for i in range(num_tasks)]),
        task_type=np.resize(["even", "odd"], num_tasks),
        part=np.resize(["fit", "fit", "test"], num_tasks),
        num_turns=num_turns,
        success=rng.random((num_tasks, num_models)) < 0.5,
        cost_nusd=np.where(taken, rng.integers(1, 1000, size=taken.shape), 0),
        kind=np.where(taken, rng.choice([TOOL, ANSWER, INVALID], size=taken.shape), 0),
    )


def by_hand(success: Sequence[Sequence[bool]], cost_usd: Sequence[Sequence[Sequence[float]]]) -> Attempts:
    """Attempts [N, K] with the costs of their turns, as many as are given."""
    num_tasks, num_models = len(success), len(success[0])
    num_turns = np.array([[len(costs) for costs in row] for row in cost_usd])
    padded = np.zeros((num_tasks, num_models, int(num_turns.max())))
    for n, row in enumerate(cost_usd):
        for k, costs in enumerate(row):
            padded[n, k, : len(costs)] = costs
    return Attempts(
        catalog=make_catalog(num_models),
        task_id=np.array([f"t{i}" for i in range(num_tasks)]),
        task_type=np.full(num_tasks, "any"),
        part=np.full(num_tasks, "fit"),
        num_turns=num_turns,
        success=np.array(success),
        cost_nusd=(padded * USD).round().astype(np.int64),
        kind=np.where(padded > 0, TOOL, 0),
    )


def states_of(attempts: Attempts, remaining_usd: float, model: int = NONE, turn: int = 0) -> TaskStates:
    """Every task in the same place."""
    num_tasks, num_models = len(attempts), len(attempts.catalog)
    tried = np.zeros((num_tasks, num_models), dtype=np.bool_)
    if model != NONE:
        tried[:, model] = True
    whole = (np.arange(num_tasks), np.full(num_tasks, model), np.full(num_tasks, turn), tried)
    return TaskStates(*whole, np.full(num_tasks, round(remaining_usd * USD)))
