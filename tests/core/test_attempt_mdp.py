import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.attempt_estimates import estimate_attempts
from seqroute_ray.core.attempt_mdp import NUM_AFTER, NUM_CONTEXT, AttemptQPolicy, encode_task_state, relabel_attempts
from seqroute_ray.core.attempts import NONE, replay_attempts
from seqroute_ray.core.policy import Perceptron, QNetwork
from tests.attempts_support import by_hand, make_attempts, states_of

EVERY = np.ones(40, dtype=np.bool_)


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(1e-9, 1e3))
def test_a_state_is_finite_and_does_not_depend_on_its_batch(num_models: int, seed: int, money_usd: float) -> None:
    attempts = make_attempts(40, num_models, seed)
    estimates = estimate_attempts(attempts, EVERY)
    states = states_of(attempts, money_usd)
    state, next_usd = encode_task_state(estimates, states, 1e-6)
    assert state.shape == (40, NUM_CONTEXT + num_models * (1 + NUM_AFTER))
    assert np.isfinite(state).all()
    assert (next_usd > 0).all()
    alone, _ = encode_task_state(estimates, states.take(np.array([7])), 1e-6)
    np.testing.assert_allclose(alone[0], state[7], rtol=1e-6)


def test_transitions_are_what_happened() -> None:
    attempts = make_attempts(30, 3, seed=1)
    estimates = estimate_attempts(attempts, np.ones(30, dtype=np.bool_))
    t = relabel_attempts(attempts, estimates, np.arange(30), (1e-7, 5e-6), num_replays=20, seed=0)
    rows = np.arange(len(t))
    assert t.states.allowed[rows, t.action].all()
    turn = np.where(t.action == t.states.model, t.states.turn, 0)
    cost = attempts.cost_nusd[t.states.task, t.action, turn]
    fits = cost <= t.states.remaining_nusd
    np.testing.assert_array_equal(t.following.remaining_nusd, t.states.remaining_nusd - np.where(fits, cost, 0))
    ended = turn + 1 == attempts.num_turns[t.states.task, t.action]
    solved = ended & fits & attempts.success[t.states.task, t.action]
    np.testing.assert_array_equal(t.reward, solved.astype(np.float32))
    assert t.terminated[solved | ~fits].all()
    assert t.following.allowed[~t.terminated].any(axis=1).all()
    np.testing.assert_array_equal(t.following.model[fits], np.where(ended, NONE, t.action)[fits])
    begun = t.states.model == NONE
    assert (begun & ~t.states.tried.any(axis=1)).sum() == 30 * 20  # each replay begins once


def test_relabeling_is_the_same_for_the_same_seed_and_holds_many_budgets() -> None:
    attempts = make_attempts(20)
    estimates = estimate_attempts(attempts, np.ones(20, dtype=np.bool_))
    ours, theirs, other = (
        relabel_attempts(attempts, estimates, np.arange(5), (1e-7, 1e-5), 50, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(ours.action, theirs.action)
    np.testing.assert_array_equal(ours.states.remaining_nusd, theirs.states.remaining_nusd)
    assert len(ours) != len(other) or not np.array_equal(ours.states.remaining_nusd, other.states.remaining_nusd)
    first = ours.states.remaining_nusd[~ours.states.tried.any(axis=1)]
    assert len(np.unique(first)) > 100
    assert 100 <= first.min() < first.max() <= 10_000


def test_replays_take_models_of_much_chance_per_dollar_more_often_but_every_model() -> None:
    attempts = by_hand([[True, True]] * 40, [[[1.0], [100.0]]] * 40)  # the same success at a hundredth of the cost
    t = relabel_attempts(attempts, estimate_attempts(attempts, EVERY), np.arange(40), (500.0, 1000.0), 100, seed=0)
    first = t.action[~t.states.tried.any(axis=1)]
    assert 0.6 < (first == 0).mean() < 0.95


def myopic_network() -> QNetwork:
    """Q is the chance of success."""
    zero = Perceptron(
        [
            (np.zeros((NUM_CONTEXT + NUM_AFTER, 2), dtype=np.float32), np.zeros(2, dtype=np.float32)),
            (np.zeros((2, 1), dtype=np.float32), np.zeros(1, dtype=np.float32)),
        ]
    )
    return QNetwork(zero, zero, NUM_CONTEXT)


@pytest.mark.parametrize(("lambda_per_usd", "expected"), [(0.0, 1), (1e12, 0)])
def test_the_policy_takes_the_best_value_less_the_price_of_the_next_turn(lambda_per_usd: float, expected: int) -> None:
    attempts = by_hand([[False, True]] * 40, [[[1.0], [3.0]]] * 40)
    policy = AttemptQPolicy(myopic_network(), estimate_attempts(attempts, EVERY), 3.0, lambda_per_usd)
    assert set(policy.act(states_of(attempts, 10.0)).tolist()) == {expected}
    # A model that was tried is never taken again, whatever it is worth.
    result = replay_attempts(policy, attempts, np.arange(40), 10**11)
    assert result.solved.all()
    assert (result.num_models == 2 - expected).all()
