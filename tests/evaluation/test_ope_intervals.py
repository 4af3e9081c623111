"""Standard errors by hand and against draws with a known truth; quantiles from the tables."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.evaluation.ope_intervals import Spread, spread, t_975
from tests.support import make_sessions


def test_an_error_worked_by_hand() -> None:
    sessions = replace(make_sessions([2, 1]), group_id=np.array(["a", "b", "a"]))
    influence = np.array([1.0, 1.0, -2.0])
    # Sessions: 2 * (4 + 4); groups: 2 * (1 + 1); turns: 3 / 2 * (1 + 1 + 4).
    assert spread(influence, sessions).error == pytest.approx(4)  # 16 + 4 - 9 is less than that of sessions alone
    alike = np.array([1.0, -2.0, 1.0])
    # Sessions: 2 * (1 + 1); groups: 2 * (4 + 4); turns: 3 / 2 * (1 + 4 + 1).
    assert spread(alike, sessions).error == pytest.approx(4)
    both = np.array([2.0, 1.0, 2.0])
    # Sessions: 2 * (9 + 4); groups: 2 * (16 + 1); turns: 3 / 2 * (4 + 1 + 4).
    assert spread(both, sessions).error == pytest.approx(np.sqrt(26 + 34 - 13.5))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_groups_that_are_sessions_change_nothing(seed: int, num_sessions: int) -> None:
    sessions = make_sessions([3] * num_sessions)
    influence = np.random.default_rng(seed).normal(size=3 * num_sessions)
    own = replace(sessions, group_id=np.repeat(sessions.session_id, 3))
    sums = influence.reshape(-1, 3).sum(axis=1)
    assert spread(influence, own).error == pytest.approx(np.sqrt(np.sum(sums**2) * num_sessions / (num_sessions - 1)))


def test_the_error_of_a_mean_counts_what_sessions_and_questions_share() -> None:
    rng, num_sessions, num_questions = np.random.default_rng(0), 40, 30
    errors, estimated = [], []
    for _ in range(300):
        sessions = make_sessions([3] * num_sessions)
        session, question = np.repeat(np.arange(num_sessions), 3), rng.integers(num_questions, size=120)
        shared = rng.normal(size=num_sessions)[session] + rng.normal(size=num_questions)[question]
        y = shared + rng.normal(size=120)
        of_questions = replace(sessions, group_id=question.astype(np.str_))
        errors.append(y.mean())
        estimated.append(spread((y - y.mean()) / 120, of_questions).error)
    assert np.mean(estimated) == pytest.approx(np.std(errors), rel=0.1)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(5, 2.5706), (10, 2.2281), (20, 2.0860), (49, 2.0096), (100, 1.9840), (1e9, 1.9600)],
)
def test_quantiles_are_those_of_the_tables(degrees: float, quantile: float) -> None:
    assert t_975(degrees) == pytest.approx(quantile, abs=0.005)
    assert Spread(2.0, degrees + 1).interval(1.0) == pytest.approx((1 - 2 * quantile, 1 + 2 * quantile), abs=0.01)


def test_a_few_large_clusters_count_as_few() -> None:
    sessions = make_sessions([1] * 100)
    assert spread(np.ones(100), sessions).num_effective == pytest.approx(100)
    heavy = np.where(np.arange(100) < 4, 1.0, 0.0)
    assert spread(heavy, sessions).num_effective == pytest.approx(4)
    shared = replace(sessions, group_id=np.where(np.arange(100) < 50, "a", "b"))
    assert spread(np.ones(100), shared).num_effective == pytest.approx(2)
