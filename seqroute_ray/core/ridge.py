"""Ridge regression, linear and logistic, with one penalty a column: the solvers of the estimator."""

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray

MAX_NEWTON_STEPS = 25
CONVERGED = 1e-6  # largest change of a weight


def sigmoid(z: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -30, 30))))


def ridge(x: FloatArray, y: FloatArray, penalty: FloatArray, prior: FloatArray | None = None) -> FloatArray:
    """Least squares of y on x [N, F]: weights [F], drawn to `prior` (0) with the strengths penalty [F]."""
    weights = np.zeros(x.shape[1]) if prior is None else prior
    return np.asarray(weights + np.linalg.solve(_gram(x, penalty), x.T @ (y - x @ weights)))


def leave_one_out(x: FloatArray, residual: FloatArray, penalty: FloatArray) -> FloatArray:
    """Residuals [N] of `ridge` as if each row had been left out of its own fit."""
    leverage = np.einsum("nf,fn->n", x, np.linalg.solve(_gram(x, penalty), x.T))
    return np.asarray(residual / (1.0 - np.minimum(leverage, 0.99)))


def logistic_ridge(x: FloatArray, y: FloatArray, penalty: FloatArray, prior: FloatArray | None = None) -> FloatArray:
    """Logistic regression of y [N] in [0, 1] on x [N, F] by Newton's method; otherwise as `ridge`."""
    centre = np.zeros(x.shape[1]) if prior is None else prior
    weights = np.zeros(x.shape[1])  # where the curvature is greatest; from a saturated start Newton's method diverges
    for _ in range(MAX_NEWTON_STEPS):
        p = sigmoid(x @ weights)
        curvature = np.maximum(p * (1 - p), 1e-6)
        gradient = x.T @ (y - p) - penalty * (weights - centre)
        step = np.linalg.solve(_gram(x * np.sqrt(curvature)[:, None], penalty), gradient)
        weights = weights + step
        if np.abs(step).max() < CONVERGED:
            break
    return weights


def _gram(x: FloatArray, penalty: FloatArray) -> FloatArray:
    return np.asarray(x.T @ x + np.diag(np.maximum(penalty, 1e-8)))
