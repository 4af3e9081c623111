import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.attempts import NONE, TaskStates, replay_attempts, step
from seqroute_ray.evaluation.attempt_policies import Cascade, RandomAttempts
from tests.attempts_support import USD, by_hand, make_attempts, states_of

# One task: the first model fails in two turns, the second solves it in two.
HARD = by_hand([[False, True]], [[[1.0, 2.0], [3.0, 4.0]]])


def replayed(cascade: Cascade, budget_usd: float) -> tuple[bool, float, bool, int]:
    result = replay_attempts(cascade, HARD, np.array([0]), round(budget_usd * USD))
    return bool(result.solved[0]), result.cost_nusd[0] / USD, bool(result.bankrupt[0]), int(result.num_models[0])


def test_replays_worked_by_hand() -> None:
    assert replayed(Cascade((0,), (2,)), 100) == (False, 3, False, 1)  # it fails, and there is nothing else to try
    assert replayed(Cascade((1,), (2,)), 100) == (True, 7, False, 1)
    assert replayed(Cascade((1,), (1,)), 100) == (False, 3, False, 1)  # dropped before its end
    assert replayed(Cascade((0, 1), (2, 2)), 100) == (True, 10, False, 2)
    assert replayed(Cascade((0, 1), (1, 2)), 100) == (True, 8, False, 2)
    assert replayed(Cascade((0, 1), (1, 2)), 8) == (True, 8, False, 2)  # to the last cent
    # The last turn does not fit: its cost is not spent, and the task is over.
    assert replayed(Cascade((0, 1), (1, 2)), 7.999) == (False, 4, True, 2)
    assert replayed(Cascade((0, 1), (1, 2)), 0.5) == (False, 0, True, 1)


def test_success_is_seen_only_when_an_attempt_ends() -> None:
    first = step(HARD, states_of(HARD, 10.0), np.array([1]))
    assert not first.solved[0]
    assert (first.states.model[0], first.states.turn[0], first.states.remaining_nusd[0]) == (1, 1, 7 * USD)
    assert step(HARD, first.states, np.array([1])).solved[0]


def test_after_a_failed_attempt_only_untried_models_are_allowed() -> None:
    states = states_of(HARD, 10.0)
    assert states.allowed.tolist() == [[True, True]]
    states = step(HARD, states, np.array([0])).states
    assert states.allowed.tolist() == [[True, True]]  # go on, or begin anew with the other
    states = step(HARD, states, np.array([0])).states
    assert states.model.tolist() == [NONE]
    assert states.allowed.tolist() == [[False, True]]


class Watched:
    """A policy that notes what it was asked."""

    def __init__(self, seed: int) -> None:
        self.policy, self.rng, self.seen = RandomAttempts(seed), np.random.default_rng(seed), 0

    def act(self, states: TaskStates) -> IntArray:
        self.seen += len(states.task)
        assert states.allowed.any(axis=1).all()
        assert (states.remaining_nusd >= 0).all()
        action = self.policy.act(states)
        return np.where(self.rng.random(len(action)) < 0.1, NONE, action)


@settings(deadline=None, max_examples=40)  # the machine may be busy
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(1, 5000))
def test_no_policy_spends_more_than_the_budget_nor_tries_a_model_twice(
    num_tasks: int, num_models: int, seed: int, budget_nusd: int
) -> None:
    attempts, watched = make_attempts(num_tasks, num_models, seed), Watched(seed)
    result = replay_attempts(watched, attempts, np.arange(num_tasks), budget_nusd)
    assert (result.cost_nusd <= budget_nusd).all()
    assert (result.num_models <= num_models).all()
    assert not (result.solved & result.bankrupt).any()
    assert watched.seen >= num_tasks


@settings(deadline=None, max_examples=40)  # the machine may be busy
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 4000), st.integers(0, 4000))
def test_a_cascade_with_more_money_solves_whatever_it_solved(
    num_tasks: int, seed: int, budget: int, extra: int
) -> None:
    attempts, cascade = make_attempts(num_tasks, 3, seed), Cascade((2, 0, 1), (2, 3, 1))
    poor, rich = (replay_attempts(cascade, attempts, np.arange(num_tasks), b).solved for b in (budget, budget + extra))
    assert (rich | ~poor).all()
