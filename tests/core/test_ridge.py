"""The solvers: against closed forms, optimality conditions and refits."""

from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.ridge import leave_one_out, logistic_ridge, ridge, sigmoid


class Problem(NamedTuple):
    """Random regressors, targets in [0, 1], penalties and a prior."""

    x: FloatArray  # [N, F]
    y: FloatArray  # [N]
    penalty: FloatArray  # [F]
    prior: FloatArray  # [F]


@st.composite
def problems(draw: st.DrawFn, max_rows: int = 30) -> Problem:
    num_rows, num_columns = draw(st.integers(2, max_rows)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = draw(st.sampled_from([0.1, 1.0])) * rng.normal(size=(num_rows, num_columns))
    y = rng.random(num_rows) if draw(st.booleans()) else (x[:, 0] > 0).astype(np.float64)  # the second is separable
    return Problem(x, y, np.exp(rng.uniform(-3, 3, size=num_columns)), rng.normal(size=num_columns))


@settings(deadline=None)  # the machine may be busy
@given(problems())
def test_ridge_is_the_closed_form(problem: Problem) -> None:
    x, y, penalty, prior = problem
    gram = np.linalg.inv(x.T @ x + np.diag(penalty))
    np.testing.assert_allclose(ridge(x, y, penalty), gram @ x.T @ y, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ridge(x, y, penalty, prior), gram @ (x.T @ y + penalty * prior), rtol=1e-6, atol=1e-9)


def test_a_column_is_drawn_to_the_prior_by_its_own_penalty() -> None:
    x, y = np.eye(3), np.array([1.0, 1.0, 1.0])
    # One row a column: (y + penalty * prior) / (1 + penalty).
    np.testing.assert_allclose(ridge(x, y, np.array([0.0, 1.0, 3.0])), [1.0, 0.5, 0.25], atol=1e-7)
    np.testing.assert_allclose(ridge(x, y, np.array([0.0, 1.0, 3.0]), np.full(3, 5.0)), [1.0, 3.0, 4.0], atol=1e-7)


@settings(deadline=None)  # the machine may be busy
@given(problems())
def test_the_loss_of_logistic_ridge_is_flat_at_its_solution(problem: Problem) -> None:
    x, y, penalty, prior = problem
    for centre, weights in (
        (np.zeros_like(prior), logistic_ridge(x, y, penalty)),
        (prior, logistic_ridge(x, y, penalty, prior)),
    ):
        gradient = x.T @ (1 / (1 + np.exp(-x @ weights)) - y) + penalty * (weights - centre)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@settings(deadline=None)  # the machine may be busy
@given(problems())
def test_without_information_both_solvers_stay_at_the_prior(problem: Problem) -> None:
    x, y, penalty, prior = problem
    for solve in (ridge, logistic_ridge):
        np.testing.assert_allclose(solve(0 * x, y, penalty, prior), prior)
        np.testing.assert_allclose(solve(x, y, np.full_like(prior, 1e9), prior), prior, atol=1e-5)
        assert (solve(0 * x, y, penalty) == 0).all()


def test_logistic_ridge_finds_the_log_odds_of_one_column() -> None:
    ones = np.ones((10, 1))
    weights = logistic_ridge(ones, np.array([1.0] * 8 + [0.0] * 2), np.array([0.0]))
    np.testing.assert_allclose(weights, np.log(4.0), rtol=1e-6)
    np.testing.assert_allclose(logistic_ridge(ones, np.full(10, 0.8), np.array([0.0])), weights, rtol=1e-6)


@settings(deadline=None)  # the machine may be busy
@given(problems(max_rows=12))
def test_leaving_one_out_equals_a_refit_without_the_row(problem: Problem) -> None:
    x, y, penalty, _ = problem
    penalty = np.maximum(penalty, 1.0) * max(1.0, float((x**2).sum(axis=1).max()))  # no row fits itself
    ours = leave_one_out(x, y - x @ ridge(x, y, penalty), penalty)
    rest = [np.arange(len(y)) != row for row in range(len(y))]
    refits = [y[row] - x[row] @ ridge(x[keep], y[keep], penalty) for row, keep in enumerate(rest)]
    np.testing.assert_allclose(ours, refits, rtol=1e-6, atol=1e-9)


def test_a_row_that_only_it_explains_keeps_a_finite_residual() -> None:
    x, y = np.eye(2), np.array([1.0, 2.0])
    penalty = np.array([1e-6, 1.0])
    residual = leave_one_out(x, y - x @ ridge(x, y, penalty), penalty)
    np.testing.assert_allclose(residual, [1e-6 / 0.01, 2.0], rtol=1e-3)  # leverages 1 - 1e-6, taken as 0.99, and 1/2


def test_the_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        p = sigmoid(np.array([-1e9, -1.0, 0.0, 1.0, 1e9]))
    np.testing.assert_allclose(p, [0.0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1.0], atol=1e-12)
