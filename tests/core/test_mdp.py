"""The MDP's state and rules, by hand and against naive loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.mdp import (
    MIN_BUDGET_SHARE,
    NUM_AFTER,
    NUM_MONEY,
    StateLayout,
    TurnFeatures,
    affordable,
    after_state,
    encode_state,
    expected_turns_left,
    reference_cost_usd,
    running_mean,
)
from tests.support import make_layout, make_turns

LAYOUT = StateLayout(num_models=2, summary_width=3, reference_cost_usd=8.0, expected_turns_left=(4.0, 2.0))
SEEDS = st.integers(0, 2**32 - 1)


def estimates_of(cost_usd: list[float], cost_high_usd: list[float]) -> Estimates:
    """Of one turn."""
    columns = ([0.75] * len(cost_usd), cost_usd, cost_high_usd, [0.018, 0.0], [6.0, 6.0])
    return Estimates(*(np.array([column], dtype=np.float32) for column in columns))


def test_the_context_of_a_state_worked_by_hand() -> None:
    history = np.array([[0.25, 0.75, -1.0]] * 3, dtype=np.float32)
    turns = TurnFeatures(make_turns(3).estimates, history)
    state = encode_state(LAYOUT, turns, np.array([2.0, 8.0, 0.0]), np.array([1, 0, 9]))
    assert state.shape == (3, LAYOUT.state_dim) == (3, (6 + 3) + 2 * (1 + 6))
    assert state.dtype == np.float32
    assert LAYOUT.num_context == 9
    np.testing.assert_allclose(
        state[:, :NUM_MONEY],
        [
            # Money a turn over an eighth of the reference: 0.25 * 8 / 2 = 1; 1 * 8 / 4 = 2; at least 1e-4 * 8 / 2.
            [np.log(0.25) / 2 + 1, 0.25, 1.0, 0.0, 1 / 12, 2 / 12],
            [1.0, 1.0, 1.0, np.log(2) / 2, 0.0, 4 / 12],
            [np.log(1e-4) / 2 + 1, 1e-4, 1e-3, np.log(4e-4) / 2, 9 / 12, 2 / 12],
        ],
        rtol=1e-5,
        atol=1e-7,
    )
    np.testing.assert_array_equal(state[:, NUM_MONEY:9], history)
    np.testing.assert_array_equal(state[:, 9:11], turns.estimates.quality)


def test_what_a_model_would_leave_worked_by_hand() -> None:
    estimates = estimates_of([2.0, 0.0], [6.0, 0.0])
    after = after_state(LAYOUT, estimates, np.array([6.0]), np.array([3.0]))
    assert after.shape == (1, 2, NUM_AFTER)
    # Chances of a runaway answer that does not fit: a runaway costs all that is left, which fits half of the time.
    rare, never = np.log(0.009 + 1e-3) / 2 + 2, np.log(1e-3) / 2 + 2
    dear = [np.log(3), np.log(0.5) / 2 + 1, np.log(1e-4) / 2 + 1, np.log(0.5 * 8 / 2) / 2, 1.0, rare]
    free = [0.0, np.log(0.75) / 2 + 1, np.log(0.75) / 2 + 1, np.log(0.75 * 8 / 2) / 2, 1.0, never]
    np.testing.assert_allclose(after[0], [dear, free], rtol=1e-6, atol=1e-7)
    turns = TurnFeatures(estimates, np.zeros((1, 3), dtype=np.float32))
    state = encode_state(LAYOUT, turns, np.array([8.0]), np.array([1]))
    ours = after_state(LAYOUT, estimates, np.array([8.0]), np.array([2.0]))
    np.testing.assert_allclose(state[0, 11:], np.concatenate([ours[0, 0], ours[0, 1]]), rtol=1e-6)


def test_a_runaway_answer_is_a_risk_only_where_it_does_not_fit() -> None:
    estimates = estimates_of([2.0, 0.0], [6.0, 0.0])  # a runaway answer costs 6, at a chance of 0.018
    rich, poor = (after_state(LAYOUT, estimates, np.array([usd]), np.array([3.0]))[0, 0, -1] for usd in (60.0, 1.0))
    np.testing.assert_allclose(rich, np.log(1e-3) / 2 + 2, rtol=1e-5)
    np.testing.assert_allclose(poor, np.log(0.018 + 1e-3) / 2 + 2, rtol=1e-3)


def test_after_the_last_turn_that_is_expected_what_is_left_is_divided_by_a_quarter() -> None:
    estimates = estimates_of([2.0, 4.0], [2.0, 4.0])
    later = after_state(LAYOUT, estimates, np.array([6.0]), np.array([1.0]))
    np.testing.assert_allclose(later[0, :, 3], np.log(np.array([0.5, 0.25]) * 8 / 0.25) / 2)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 4), st.integers(1, 8), SEEDS)
def test_a_row_of_a_state_depends_on_no_other_row(num_models: int, num_rows: int, seed: int) -> None:
    rng, layout, turns = np.random.default_rng(seed), make_layout(num_models), make_turns(num_rows, num_models, seed)
    remaining_usd = rng.exponential(layout.reference_cost_usd, size=num_rows)
    turn = rng.integers(12, size=num_rows)
    together = encode_state(layout, turns, remaining_usd, turn)
    for i in range(num_rows):
        rows = np.array([i])
        alone = encode_state(layout, turns.take(rows), remaining_usd[rows], turn[rows])
        np.testing.assert_array_equal(alone, together[rows])


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 4), SEEDS, st.floats(0, 1e6), st.integers(0, 10**4), st.floats(0, 1e6), st.floats(1, 1e6))
def test_a_state_is_finite_and_small_whatever_the_money_and_the_costs(
    num_models: int, seed: int, remaining_usd: float, turn: int, cost_usd: float, runaway: float
) -> None:
    turns = make_turns(1, num_models, seed)
    turns.estimates.cost_usd[0, 0], turns.estimates.cost_high_usd[0, 0] = cost_usd, cost_usd * runaway
    state = encode_state(make_layout(num_models), turns, np.array([remaining_usd]), np.array([turn]))
    assert np.isfinite(state).all()
    turn_entry = 4
    assert np.abs(np.delete(state, turn_entry)).max() < 20


@settings(deadline=None)  # the machine may be busy
@given(SEEDS, st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_more_money_leaves_more_and_a_dearer_model_leaves_less(seed: int, low: float, extra: float) -> None:
    layout, turns = make_layout(3), make_turns(4, 3, seed)
    left = np.full(4, 3.0)
    less, more = (after_state(layout, turns.estimates, np.full(4, usd), left) for usd in (low, low + extra))
    assert (less[:, :, 1:-1] <= more[:, :, 1:-1]).all()
    assert (less[:, :, -1] >= more[:, :, -1]).all()  # a runaway answer fits more often
    order = np.argsort(turns.estimates.cost_usd, axis=1)
    by_cost = np.take_along_axis(less[:, :, 1], order, axis=1)
    assert (np.diff(by_cost, axis=1) <= 0).all()
    assert by_cost.min() >= np.float32(np.log(MIN_BUDGET_SHARE) / 2 + 1)


def test_taking_turns_takes_their_estimates_and_history() -> None:
    turns, rows = make_turns(5), np.array([3, 0, 3])
    taken = turns.take(rows)
    assert (len(turns), len(taken)) == (5, 3)
    np.testing.assert_array_equal(taken.history, turns.history[rows])
    for name, values in vars(turns.estimates).items():
        np.testing.assert_array_equal(getattr(taken.estimates, name), values[rows], err_msg=name)


def test_running_means_worked_by_hand() -> None:
    values = np.array([[1.0, 10.0], [3.0, 20.0], [8.0, 0.0], [5.0, 5.0], [7.0, 1.0]], dtype=np.float32)
    means = running_mean(values, np.array([0, 3, 5]))
    assert means.tolist() == [[1.0, 10.0], [2.0, 15.0], [4.0, 10.0], [5.0, 5.0], [6.0, 3.0]]
    assert means.dtype == np.float32


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), SEEDS)
def test_running_means_are_the_naive_means_of_each_session(lengths: list[int], width: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(sum(lengths), width)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    means = running_mean(values, offsets)
    for first, end in pairwise(offsets):
        for row in range(first, end):
            np.testing.assert_allclose(means[row], values[first : row + 1].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_expected_turns_left_worked_by_hand() -> None:
    # Lengths 1, 3, 3: at turn 0 (1 + 3 + 3) / 3 are to come, at turns 1 and 2 only the long ones live.
    assert expected_turns_left(np.array([3, 1, 3])) == pytest.approx((7 / 3, 2.0, 1.0))
    assert expected_turns_left(np.array([1])) == (1.0,)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_the_last_turn_expects_itself_alone_and_no_turn_expects_less(lengths: list[int]) -> None:
    left = expected_turns_left(np.array(lengths))
    assert len(left) == max(lengths)
    assert left[-1] == 1.0
    assert min(left) >= 1.0
    assert left[0] == pytest.approx(np.mean(lengths))


def test_the_reference_cost_is_eight_mean_turns_of_the_dearest_model() -> None:
    cost_usd, action = np.array([1.0, 3.0, 5.0, 2.5]), np.array([0, 2, 2, 0])
    assert reference_cost_usd(cost_usd, action, 4) == pytest.approx(8 * (3.0 + 5.0) / 2)  # 1 and 3 never answered


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_affordable_masks_exactly_the_models_above_what_remains_but_the_cheapest(
    num_models: int, num_rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cost_usd, cost_high_usd = rng.integers(1, 6, size=(2, num_rows, num_models)) / 4  # ties and equalities happen
    remaining_usd = rng.integers(0, 6, size=num_rows) / 4
    before = cost_high_usd.copy()
    allowed = affordable(cost_usd, cost_high_usd, remaining_usd)
    np.testing.assert_array_equal(cost_high_usd, before)
    for means, costs, remaining, mask in zip(cost_usd, cost_high_usd, remaining_usd, allowed, strict=True):
        assert mask.tolist() == [cost <= remaining or k == np.argmin(means) for k, cost in enumerate(costs)]


def test_affordability_worked_by_hand() -> None:
    cost_usd, cost_high_usd = np.array([[0.05, 0.08, 0.1]] * 4), np.array([[0.2, 0.1, 0.4]] * 4)
    allowed = affordable(cost_usd, cost_high_usd, np.array([0.4, 0.2, 0.1, 0.05]))
    assert allowed.tolist() == [[True, True, True], [True, True, False], [True, True, False], [True, False, False]]


def test_a_layout_survives_the_way_to_json_and_back() -> None:
    assert StateLayout.from_json(LAYOUT.to_json()) == LAYOUT
    assert StateLayout.from_json({**LAYOUT.to_json(), "expected_turns_left": [4.0, 2.0]}) == LAYOUT


@pytest.mark.parametrize("amount_usd", [0.0, -1.0, float("nan")])
def test_a_pool_without_a_reference_cost_is_refused(amount_usd: float) -> None:
    with pytest.raises(ConfigError, match=r"reference_cost_usd must be > 0, .* is every model of the pool free"):
        StateLayout(num_models=2, summary_width=1, reference_cost_usd=amount_usd, expected_turns_left=(1.0,))


def test_a_layout_without_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected_turns_left needs at least one turn"):
        StateLayout(num_models=2, summary_width=1, reference_cost_usd=1.0, expected_turns_left=())
