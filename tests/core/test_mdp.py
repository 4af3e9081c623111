"""The MDP's state and rules, by hand and against naive loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.mdp import (
    NO_ACTION,
    StateLayout,
    affordable,
    earlier_mean,
    encode_state,
    expected_turns_left,
    outcome_features,
    reference_cost_usd,
    turn_features,
)
from tests.support import make_layout

LAYOUT = StateLayout(num_models=2, reference_cost_usd=8.0, expected_turns_left=(4.0, 2.0))


def test_the_state_of_a_pool_worked_by_hand() -> None:
    features = np.zeros((3, 12), dtype=np.float32)
    features[:, 2:4] = [1.0, 2.0]  # log costs: ln 1 and ln e^2 of an eighth of the reference
    features[:, 11] = 0.5
    state = encode_state(LAYOUT, features, np.array([2.0, 8.0, 0.0]), np.array([1, 0, 9]), np.array([1, NO_ACTION, 0]))
    assert state.shape == (3, LAYOUT.state_dim) == (3, 6 * 2 + 2 * 2 + 6)
    assert state.dtype == np.float32
    np.testing.assert_array_equal(state[:, :12], features)
    np.testing.assert_array_equal(state[:, 12:14], [[0, 1], [0, 0], [1, 0]])  # previous model
    # Money a turn over an eighth of the reference: 0.25 * 8 / 2 = 1; 1 * 8 / 4 = 2; at least 1e-4 * 8 / 2.
    turn_share = np.log([1.0, 2.0, 4e-4])
    fit = np.stack([turn_share, np.maximum(turn_share - 2, -4)], axis=1)
    fit[2] = -4
    np.testing.assert_allclose(state[:, 14:16], fit / 2, rtol=1e-6)
    np.testing.assert_allclose(
        state[:, 16:],
        [
            [np.log(0.25) / 2 + 1, 0.25, 1.0, 0.0, 1 / 12, 2 / 12],
            [1.0, 1.0, 1.0, np.log(2) / 2, 0.0, 4 / 12],
            [np.log(1e-4) / 2 + 1, 1e-4, 1e-3, np.log(4e-4) / 2, 9 / 12, 2 / 12],
        ],
        rtol=1e-5,
        atol=1e-7,
    )


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_row_of_a_state_depends_on_no_other_row(num_models: int, num_rows: int, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), make_layout(num_models)
    features = rng.normal(size=(num_rows, layout.num_features)).astype(np.float32)
    remaining_usd = rng.exponential(layout.reference_cost_usd, size=num_rows)
    turn = rng.integers(12, size=num_rows)
    previous = rng.integers(NO_ACTION, num_models, size=num_rows)
    together = encode_state(layout, features, remaining_usd, turn, previous)
    for i in range(num_rows):
        row = slice(i, i + 1)
        alone = encode_state(layout, features[row], remaining_usd[row], turn[row], previous[row])
        np.testing.assert_array_equal(alone, together[row])


def test_outcome_features_worked_by_hand() -> None:
    estimates = Estimates(
        quality=np.array([[0.75, 1.0]], dtype=np.float32),
        cost_usd=np.array([[1.0, 0.0]], dtype=np.float32),  # an eighth of the reference; free
        cost_high_usd=np.array([[np.e, 0.0]], dtype=np.float32),
    )
    features = outcome_features(estimates, LAYOUT)
    np.testing.assert_allclose(features, [[0.0, 1.0, 1.0, np.log(1e-9) / 2 + 1, 1.0, 0.0]], atol=1e-6)
    both = turn_features(features, 2 * features)
    np.testing.assert_array_equal(both, np.concatenate([features, 2 * features], axis=1))
    assert both.shape == (1, LAYOUT.num_features)


def test_earlier_means_worked_by_hand() -> None:
    outcomes = np.array([[1.0, 10.0], [3.0, 20.0], [8.0, 0.0], [5.0, 5.0], [7.0, 1.0]], dtype=np.float32)
    means = earlier_mean(outcomes, np.array([0, 3, 5]))
    assert means.tolist() == [[0.0, 0.0], [1.0, 10.0], [2.0, 15.0], [0.0, 0.0], [5.0, 5.0]]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_earlier_means_are_the_naive_means_of_each_session(lengths: list[int], width: int, seed: int) -> None:
    outcomes = np.random.default_rng(seed).normal(size=(sum(lengths), width)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    means = earlier_mean(outcomes, offsets)
    for first, end in pairwise(offsets):
        assert (means[first] == 0).all()
        for row in range(first + 1, end):
            np.testing.assert_allclose(means[row], outcomes[first:row].mean(axis=0), rtol=1e-5, atol=1e-6)


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
def test_affordable_masks_exactly_the_models_above_what_remains(num_models: int, num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost_high_usd = rng.integers(1, 6, size=(num_rows, num_models)) / 4  # ties and equalities happen
    remaining_usd = rng.integers(0, 6, size=num_rows) / 4
    before = cost_high_usd.copy()
    allowed = affordable(cost_high_usd, remaining_usd)
    np.testing.assert_array_equal(cost_high_usd, before)
    for costs, remaining, mask in zip(cost_high_usd, remaining_usd, allowed, strict=True):
        if min(costs) > remaining:
            assert np.flatnonzero(mask).tolist() == [int(np.argmin(costs))]
        else:
            assert mask.tolist() == [cost <= remaining for cost in costs]


def test_affordability_worked_by_hand() -> None:
    cost_high_usd = np.array([[0.2, 0.1, 0.4]] * 4)
    allowed = affordable(cost_high_usd, np.array([0.4, 0.2, 0.1, 0.05]))
    assert allowed.tolist() == [[True, True, True], [True, True, False], [False, True, False], [False, True, False]]


def test_a_layout_survives_the_way_to_json_and_back() -> None:
    assert StateLayout.from_json(LAYOUT.to_json()) == LAYOUT
    assert StateLayout.from_json({**LAYOUT.to_json(), "expected_turns_left": [4.0, 2.0]}) == LAYOUT


@pytest.mark.parametrize("amount_usd", [0.0, -1.0, float("nan")])
def test_a_pool_without_a_reference_cost_is_refused(amount_usd: float) -> None:
    with pytest.raises(ConfigError, match=r"reference_cost_usd must be > 0, .* is every model of the pool free"):
        StateLayout(num_models=2, reference_cost_usd=amount_usd, expected_turns_left=(1.0,))


def test_a_layout_without_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected_turns_left needs at least one turn"):
        StateLayout(num_models=2, reference_cost_usd=1.0, expected_turns_left=())
