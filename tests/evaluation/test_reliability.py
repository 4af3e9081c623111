"""Calibration and losses of the estimates, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.evaluation.reliability import NUM_BINS, curve, log_loss, reliability
from tests.support import make_estimates, make_foreseen, make_replay_data, make_sessions


def test_the_log_loss_worked_by_hand() -> None:
    assert log_loss(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    assert log_loss(np.array([0.8, 0.8]), np.array([1.0, 0.0])) == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    assert log_loss(np.array([0.8]), np.array([0.25])) == pytest.approx(-0.25 * np.log(0.8) - 0.75 * np.log(0.2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_log_loss_of_a_certain_error_is_finite(dtype: type[np.floating]) -> None:
    assert log_loss(np.array([0, 1], dtype=dtype), np.array([1.0, 0.0])) == pytest.approx(-np.log(1e-4), rel=1e-3)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_bins_of_a_curve_cover_each_question_once_in_the_order_of_the_estimates(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, outcome = rng.random((2, num))
    rows = curve(p, outcome)
    sizes = np.array([row["num"] for row in rows])
    ends = np.cumsum(sizes).astype(np.int64)
    assert len(rows) == min(NUM_BINS, num)
    assert ends[-1] == num
    assert sizes.max() - sizes.min() <= 1
    order = np.argsort(p)
    for name, values in (("estimate", p), ("outcome", outcome)):
        running = np.cumsum([row[name] * row["num"] for row in rows])
        np.testing.assert_allclose(running, np.cumsum(values[order])[ends - 1])


def test_perfect_estimates_have_no_loss_and_lie_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    data = make_foreseen(make_estimates(rng.integers(2, size=(200, 2)), rng.uniform(1, 9, size=(200, 2))))
    for row in reliability(data, None):
        assert row["log_loss"]["estimate"] == pytest.approx(1e-4, rel=0.01)  # no estimate counts as quite certain
        assert row["brier"]["estimate"] == 0
        assert row["cost_ratio"] == pytest.approx(1)
        assert [place["estimate"] for place in row["curve"]] == [place["outcome"] for place in row["curve"]]


def test_each_model_is_judged_by_itself_worked_by_hand() -> None:
    data = make_foreseen(make_estimates([[0.5, 0.8], [0.5, 0.4]], [[1, 2], [3, 4]], [[2, 2], [2, 9]]))
    cost_nusd = 10**9 * np.array([[2, 2], [4, 7]])
    outcome = np.array([[1, 1], [0, 0]], dtype=np.float32)
    data = replace(data, sessions=replace(data.sessions, outcome_quality=outcome, outcome_cost_nusd=cost_nusd))
    first, second = reliability(data, None)
    assert (first["model"], second["model"]) == data.sessions.catalog.names
    assert first["log_loss"] == pytest.approx({"estimate": np.log(2)})
    assert second["log_loss"] == pytest.approx({"estimate": -(np.log(0.8) + np.log(0.6)) / 2})
    assert (first["brier"]["estimate"], second["brier"]["estimate"]) == pytest.approx((0.25, (0.04 + 0.16) / 2))
    assert (first["cost_ratio"], second["cost_ratio"]) == (6 / 4, 9 / 6)
    assert (first["cost_coverage"], second["cost_coverage"]) == (0.5, 1.0)
    np.testing.assert_allclose([row["estimate"] for row in second["curve"]], [0.4, 0.8])
    assert [row["outcome"] for row in second["curve"]] == [0, 1]


def test_the_rivals_are_the_mean_and_the_table_of_the_fit_part() -> None:
    data = make_foreseen(make_estimates([[0.5]] * 3, [[1]] * 3))
    outcome = np.array([[1], [0], [1]], dtype=np.float32)
    source = np.array(["sums", "prose", "verse"])
    data = replace(data, sessions=replace(data.sessions, outcome_quality=outcome, source=source))
    fit_quality = np.array([[1], [1], [0], [0], [0], [1], [0], [0]], dtype=np.float32)  # sums 2/3, prose 1/5
    fit = replace(
        make_sessions([8], num_models=1),
        source=np.repeat(["sums", "prose"], [3, 5]),
        outcome_quality=fit_quality,
        quality=fit_quality[:, 0],
    )
    loss = reliability(data, fit)[0]["log_loss"]
    assert list(loss) == ["estimate", "mean", "table by type"]
    assert loss["estimate"] == pytest.approx(np.log(2))
    assert loss["mean"] == pytest.approx(-np.mean(np.log([3 / 8, 5 / 8, 3 / 8])))
    assert loss["table by type"] == pytest.approx(-np.mean(np.log([2 / 3, 4 / 5, 3 / 8])))  # verse is new: the mean


def test_each_question_counts_once_although_sessions_reuse_it() -> None:
    sessions = make_sessions([3, 4, 5])
    again = sessions.take(np.array([0, 1, 1, 2, 1, 0, 1]))
    once, reused = (reliability(make_replay_data(part), sessions) for part in (sessions, again))
    assert reused == once
    assert [sum(place["num"] for place in row["curve"]) for row in reused] == [12, 12]
