"""Estimators: exact in expectation over every path, by hand, and their influence is a derivative."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.ope_estimators import (
    Model,
    Sums,
    doubly_robust,
    effective_sample_size,
    kish,
    mean_weight,
    per_decision,
    units,
    weighted_per_decision,
)
from seqroute_ray.evaluation.ope_log import LoggedPaths, weigh
from tests.evaluation.ope_support import acting, cut, every_path, random_target, value_of
from tests.support import make_sessions, random_sessions


def random_model(paths: LoggedPaths, target: np.ndarray, seed: int) -> Model:
    """Wrong, but a function of turn, remaining money and action."""
    q_values = 3 * random_target(paths, seed)
    rows = np.arange(len(target))
    q_value = q_values[rows, paths.sessions.action]
    return Model(reward=0.3 * q_value, q_value=q_value, value=(target * q_values).sum(axis=1))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 15_000_000), st.integers(0, 2**32 - 1))
def test_plain_and_doubly_robust_are_exact_in_expectation(
    num_turns: int, num_models: int, budget_nusd: int, seed: int
) -> None:
    sessions = every_path(num_turns, num_models, seed)
    if num_models == 1:
        sessions = replace(sessions, propensity=sessions.propensity * 0.999999)  # 1 everywhere is refused
    paths = cut(sessions, budget_nusd)
    target = random_target(paths, seed)
    weights, unit = weigh(paths, target), units(sessions, "session")
    truth = pytest.approx(value_of(paths, target), abs=1e-4)
    assert per_decision(paths, weights, unit).value() == truth
    assert doubly_robust(paths, weights, unit, random_model(paths, target, seed + 1)).value() == truth
    assert mean_weight(weights, sessions).value() == pytest.approx(1.0, abs=1e-4)


def test_estimators_worked_by_hand() -> None:
    sessions = acting(make_sessions([2, 1]), np.array([0, 0, 1]), np.array([0.5, 0.5, 0.5]))
    sessions = replace(sessions, quality=np.array([1.0, 0.5, 1.0], dtype=np.float32))
    target = np.array([[0.75, 0.25], [0.5, 0.5], [0.75, 0.25]])
    paths = cut(sessions, 10**12)
    weights, unit = weigh(paths, target), units(sessions, "turn")  # upto: 1.5, 1.5, 0.5
    assert per_decision(paths, weights, unit).value() == pytest.approx((1.5 + 0.75 + 0.5) / 3)
    # So few sessions are one stratum.
    assert weighted_per_decision(paths, weights, unit).value() == pytest.approx((1.5 + 0.75 + 0.5) / 3.5)
    model = Model(reward=np.zeros(3), q_value=np.array([1.0, 0.25, 0.5]), value=np.array([0.75, 0.5, 0.5]))
    # Turns: 0.75 + 1.5 (1 - 1), then 1.5 * 0.5 + 1.5 (0.5 - 0.25), and 0.5 + 0.5 (1 - 0.5) of the other session.
    assert doubly_robust(paths, weights, unit, model).value() == pytest.approx((0.75 + 1.125 + 0.75) / 3)
    assert doubly_robust(paths, weights, units(sessions, "session"), model).value() == pytest.approx(2.625 / 2)


def test_the_weighted_form_is_normalised_by_position() -> None:
    # 20 sessions of two turns: at turn 0 half of them weigh 1.5 and earn 1, half weigh 0.5 and earn 0.
    sessions = acting(make_sessions([2] * 20 + [3]), np.array([0, 0, 1, 0] * 10 + [0, 0, 0]), 0.5)
    earned = np.array([1.0, 0.5, 0.0, 1.0] * 10 + [1.0, 1.0, 0.25])
    sessions = replace(sessions, quality=earned.astype(np.float32))
    target = np.tile([[0.75, 0.25], [0.5, 0.5], [0.75, 0.25], [0.5, 0.5]], (11, 1))[:43]
    paths = cut(sessions, 10**12)
    first = 21 * (10 * 1.5 + 1.5) / (10 * 1.5 + 10 * 0.5 + 1.5)
    second = 21 * (10 * 1.5 * 0.5 + 10 * 0.5 + 1.5) / (10 * 1.5 + 10 * 0.5 + 1.5)
    third = 0.25  # one session alone has it: a stratum of its own
    found = weighted_per_decision(paths, weigh(paths, target), units(sessions, "turn"))
    assert found.value() == pytest.approx((first + second + third) / 43)


def test_doubly_robust_fills_an_unjudged_turn_with_what_its_model_expects() -> None:
    sessions = acting(make_sessions([1, 1]), np.array([0, 0]), 0.5)
    sessions = replace(sessions, quality=np.array([np.nan, 1.0], dtype=np.float32))
    paths = cut(sessions, 10**12)
    weights = weigh(paths, np.array([[0.5, 0.5], [0.5, 0.5]]))  # judging: 0 and 2
    model = Model(reward=np.array([0.6, 0.6]), q_value=np.array([0.6, 0.6]), value=np.array([0.7, 0.7]))
    # 0.7 + (0.6 - 0.6), and 0.7 + (0.6 + 2 * (1 - 0.6) - 0.6).
    assert doubly_robust(paths, weights, units(sessions, "turn"), model).value() == pytest.approx((0.7 + 1.5) / 2)


@settings(deadline=None)
@given(random_sessions(), st.integers(0, 25_000_000))
def test_for_the_logger_itself_both_forms_are_the_mean_of_the_log(sessions: Sessions, budget_nusd: int) -> None:
    num_models = len(sessions.catalog)
    if num_models == 1:
        return
    paths = cut(sessions, budget_nusd)
    weights = weigh(paths, np.full((len(sessions.action), num_models), 1 / num_models))
    for per, count in (("turn", len(sessions.action)), ("session", sessions.num_sessions)):
        unit, mean = units(sessions, per), pytest.approx(paths.reward.sum() / count, abs=1e-5)
        assert per_decision(paths, weights, unit).value() == mean
        assert weighted_per_decision(paths, weights, unit).value() == mean
    assert mean_weight(weights, sessions).value() == pytest.approx(1.0, abs=1e-5)


@settings(deadline=None)
@given(random_sessions(), st.integers(0, 25_000_000), st.integers(0, 1000))
def test_the_weighted_form_stays_in_the_range_of_the_rewards(sessions: Sessions, budget_nusd: int, seed: int) -> None:
    if len(sessions.catalog) == 1:
        return
    paths = cut(sessions, budget_nusd)
    weights = weigh(paths, random_target(paths, seed))
    value = weighted_per_decision(paths, weights, units(sessions, "turn")).value()
    assert np.isnan(value) or -1e-9 <= value <= 1 + 1e-9


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 4))
def test_influence_is_the_derivative_by_the_weight_of_a_turn(seed: int, num_turns: int, num_strata: int) -> None:
    rng = np.random.default_rng(seed)
    stratum = np.concatenate([np.arange(num_strata), rng.integers(num_strata, size=num_turns)])
    top, bottom, unit = rng.normal(size=len(stratum)), *rng.uniform(0.5, 2.0, size=(2, len(stratum)))
    sums = Sums(top, bottom, stratum, unit)
    step = 1e-6
    nudged = sums.replicate(1 + step * np.eye(len(stratum)))
    np.testing.assert_allclose((nudged - sums.value()) / step, sums.influence(), rtol=1e-3, atol=1e-5)
    assert sums.influence().sum() == pytest.approx(0.0, abs=1e-9)


def test_a_turn_that_is_left_out_is_held_against_the_others() -> None:
    sums = Sums(np.array([4.0, 0.0, 0.0]), np.array([8.0, 1.0, 1.0]), np.zeros(3, dtype=np.int64), np.ones(3))
    # 0.4 is the mean, the first turn's own reward 0.5; the mean of the others is 0.
    assert sums.influence()[0] == pytest.approx(8 / 10 * (0.5 - 0.4))
    assert sums.influence(left_out=True)[0] == pytest.approx(8 / 10 * (0.5 - 0.4) / 0.2)
    assert sums.influence(left_out=True)[0] == pytest.approx(0.4 - 0.0)


def test_replicates_count_turns_as_often_as_they_were_drawn() -> None:
    sums = Sums(np.array([1.0, 0.0, 3.0]), np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1]), np.ones(3))
    drawn = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
    # 2 * 1/2 + 1 * 3/2, over 3; 2 * 2/2 + 3/2, over 3; 3 * 2/3, over 3.
    assert sums.replicate(drawn).tolist() == pytest.approx([2.5 / 3, 3.5 / 3, 2 / 3])


def test_effective_sample_size_is_of_sessions_or_of_groups_whichever_is_smaller() -> None:
    assert kish(np.array([1.0, 1.0, 1.0, 1.0])) == 4
    assert kish(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert kish(np.zeros(3)) == 0
    sessions = acting(make_sessions([1, 1, 1, 1]), np.array([0, 0, 0, 0]), 0.5)
    weights = weigh(cut(sessions, 10**12), np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert effective_sample_size(weights, sessions) == pytest.approx(3)
    shared = replace(sessions, group_id=np.array(["a", "a", "b", "c"]))
    assert effective_sample_size(weights, shared) == pytest.approx(36 / (16 + 4))
