"""The frontier and its one number, by hand and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.evaluation.aiq import aiq, cost_at_quality, frontier

COST, QUALITY = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([0.2, 0.5, 0.55, 0.8, 0.7])


def test_the_frontier_is_the_upper_concave_non_decreasing_hull() -> None:
    costs, qualities = frontier(COST, QUALITY)  # 3 lies below the line from 2 to 4, and 5 is worse than 4
    assert costs.tolist() == [1.0, 2.0, 4.0]
    assert qualities.tolist() == [0.2, 0.5, 0.8]


def test_of_points_of_one_cost_the_best_stays() -> None:
    costs, qualities = frontier(np.array([1.0, 1.0]), np.array([0.3, 0.4]))
    assert (costs.tolist(), qualities.tolist()) == ([1.0], [0.4])


points = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=12)


@settings(deadline=None)
@given(points)
def test_no_point_lies_above_the_frontier_and_its_corners_are_points(drawn: list[tuple[int, int]]) -> None:
    cost, quality = np.array(drawn, dtype=np.float64).T
    costs, qualities = frontier(cost, quality)
    assert (np.interp(cost, costs, qualities) >= quality - 1e-9).all()
    assert set(zip(costs.tolist(), qualities.tolist(), strict=True)) <= {(float(x), float(y)) for x, y in drawn}
    assert (np.diff(costs) > 0).all()
    assert (np.diff(qualities) > 0).all()


@settings(deadline=None)
@given(points)
def test_the_frontier_is_the_best_coin_between_two_points(drawn: list[tuple[int, int]]) -> None:
    cost, quality = np.array(drawn, dtype=np.float64).T
    costs, qualities = frontier(cost, quality)
    for place in np.linspace(costs[0], costs[-1], 7):
        assert np.interp(place, costs, qualities) == pytest.approx(best_coin(cost, quality, float(place)))


def best_coin(cost: FloatArray, quality: FloatArray, at: float) -> float:
    """The best mean quality of a mixture of two points that costs at most `at`."""
    best = -np.inf
    for i in range(len(cost)):
        for j in range(len(cost)):
            if cost[i] <= at:
                best = max(best, quality[i])
                if cost[j] > at:
                    share = (at - cost[i]) / (cost[j] - cost[i])
                    best = max(best, (1 - share) * quality[i] + share * quality[j])
    return float(best)


def test_aiq_of_a_straight_line_is_its_middle() -> None:
    assert aiq(np.array([1.0, 3.0]), np.array([0.4, 0.8]), 1.0, 3.0, log_cost=False) == pytest.approx(0.6, abs=1e-3)


def test_aiq_is_flat_beyond_the_points() -> None:
    one = (np.array([2.0]), np.array([0.7]))
    assert aiq(*one, 1.0, 4.0, log_cost=False) == pytest.approx(0.7)
    assert aiq(*one, 1.0, 4.0, log_cost=True) == pytest.approx(0.7)


def test_log_cost_weighs_the_cheap_end_more() -> None:
    ends = (np.array([1.0, 100.0]), np.array([0.0, 1.0]))
    assert aiq(*ends, 1.0, 100.0, log_cost=True) < aiq(*ends, 1.0, 100.0, log_cost=False)


def test_cost_at_a_quality_is_read_off_the_frontier() -> None:
    assert cost_at_quality(COST, QUALITY, 0.65) == pytest.approx(3.0)
    assert cost_at_quality(COST, QUALITY, 0.1) == pytest.approx(1.0)
    assert np.isnan(cost_at_quality(COST, QUALITY, 0.81))
