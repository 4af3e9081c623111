import numpy as np
import pytest

from seqroute_ray.core.attempt_estimates import AttemptEstimates
from seqroute_ray.core.attempts import NONE, AttemptPolicy, replay_attempts
from seqroute_ray.evaluation.attempt_policies import (
    Cascade,
    ChancePerDollar,
    DearestThatFits,
    LargeWhereHard,
    PricedChance,
    RandomAttempts,
    cascades,
    oracle_solves,
)
from tests.attempts_support import USD, by_hand, make_attempts, states_of

# Two tasks, three models of one turn each, at 1, 2 and 8 dollars.
TASKS = by_hand([[False, True, True], [False, False, True]], [[[1.0], [2.0], [8.0]]] * 2)


def estimates_of(chance: list[list[float]]) -> AttemptEstimates:
    """Chances [N, K] of TASKS; costs are the true ones."""
    logit = np.log(np.array(chance) / (1 - np.array(chance)))[..., None].astype(np.float32)
    cost_usd = (TASKS.cost_nusd / USD).astype(np.float32)
    return AttemptEstimates(logit, np.zeros((2, 3, 3), dtype=np.float32), cost_usd, cost_usd)


def first_actions(policy: AttemptPolicy, money_usd: float) -> list[int]:
    return [int(action) for action in policy.act(states_of(TASKS, money_usd))]


def test_every_order_and_stopping_rule_is_among_the_cascades_once() -> None:
    every = cascades([0, 2], (1, 3))
    assert len(every) == len(set(every)) == 2 * 2 + 2 * 4
    assert Cascade((2, 0), (1, 3)) in every
    assert Cascade((0, 2), (3, 3)) in every
    assert len(cascades([0, 1, 2, 3], (1,), max_models=2)) == 4 + 12


def test_a_cascade_gives_up_after_its_last_model() -> None:
    tried_all = states_of(TASKS, 1.0)
    tried_all.tried[:] = True
    assert Cascade((0, 1), (1, 1)).act(tried_all).tolist() == [NONE, NONE]


def test_the_budget_heuristic_takes_the_dearest_that_fits() -> None:
    mean_usd = np.array([1.0, 2.0, 8.0])
    for money_usd, expected in ((9.0, 2), (7.9, 1), (1.5, 0), (0.5, 0)):
        assert first_actions(DearestThatFits(mean_usd, 1.0), money_usd) == [expected] * 2
    assert first_actions(DearestThatFits(mean_usd, 0.5), 9.0) == [1, 1]
    tried = states_of(TASKS, 9.0)
    tried.tried[:, 2] = True
    assert DearestThatFits(mean_usd, 1.0).act(tried).tolist() == [1, 1]


def test_rules_on_the_estimates_worked_by_hand() -> None:
    estimates = estimates_of([[0.2, 0.5, 0.9], [0.6, 0.5, 0.7]])
    assert first_actions(PricedChance(estimates, 0.0), 100.0) == [2, 2]
    assert first_actions(PricedChance(estimates, 0.0), 7.0) == [1, 0]  # the third does not fit
    assert first_actions(PricedChance(estimates, 0.1), 100.0) == [1, 0]  # 0.1, 0.3, 0.1 and 0.5, 0.3, -0.1
    assert first_actions(ChancePerDollar(estimates), 100.0) == [1, 0]  # 0.2, 0.25, 0.11 and 0.6, 0.25, 0.09
    assert first_actions(LargeWhereHard(estimates, 0, 2, 0.5), 100.0) == [2, 0]
    assert first_actions(LargeWhereHard(estimates, 0, 2, -1.0), 100.0) == [2, 2]
    assert first_actions(LargeWhereHard(estimates, 0, 2, -1.0), 7.0) == [0, 0]


def test_after_one_of_two_models_comes_the_other_and_then_nothing() -> None:
    estimates = estimates_of([[0.2, 0.5, 0.9], [0.2, 0.5, 0.9]])
    result = replay_attempts(LargeWhereHard(estimates, 0, 2, 1.0), TASKS, np.arange(2), 100 * USD)
    assert result.solved.tolist() == [True, True]
    assert (result.cost_nusd / USD).tolist() == [9.0, 9.0]
    failing = by_hand([[False, True, False]] * 2, [[[1.0], [2.0], [8.0]]] * 2)
    result = replay_attempts(LargeWhereHard(estimates, 0, 2, -1.0), failing, np.arange(2), 100 * USD)
    assert result.num_models.tolist() == [2, 2]
    assert not result.solved.any()


def test_the_oracle_takes_the_cheapest_attempt_that_succeeds() -> None:
    for budget_usd, solved, cost_usd in ((1.9, [0, 0], [0, 0]), (2.0, [1, 0], [2, 0]), (8.0, [1, 1], [2, 8])):
        possible, cost = oracle_solves(TASKS, round(budget_usd * USD))
        assert possible.tolist() == [bool(x) for x in solved]
        assert (cost / USD).tolist() == cost_usd


@pytest.mark.parametrize("budget_nusd", [100, 700, 1500, 4000])
def test_no_policy_solves_a_task_that_the_oracle_does_not(budget_nusd: int) -> None:
    attempts = make_attempts(50, 3, seed=5)
    possible, _ = oracle_solves(attempts, budget_nusd)
    policies: list[AttemptPolicy] = [
        RandomAttempts(),
        *cascades([0, 1, 2], (1, 3)),
        DearestThatFits(np.array([1e-7, 2e-7, 3e-7]), 1.0),
    ]
    for policy in policies:
        assert not (replay_attempts(policy, attempts, np.arange(50), budget_nusd).solved & ~possible).any()
