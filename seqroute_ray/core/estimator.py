"""Outcome estimates: quality and cost of every (query, model), from logged outcomes alone.

One regularised linear model on the embedding for each model of the pool: logistic for quality, log-linear for cost.
A Q-network on the raw embedding memorises the 0/1 noise of a few thousand questions; these estimates are what it
plans on instead. Training turns get theirs *cross-fitted*: from a fold that saw nothing of their group.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.sessions import Sessions, observed_outcomes

MIN_COST_USD = 1e-9  # one nano-dollar: a free call's cost in logarithms
MIN_DEVIATION = 0.02  # of log cost: keeps the logarithm of a perfect prediction finite
MIN_ROWS_PER_MODEL = 20  # below this a model's estimates would be its prior alone


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How outcomes are estimated."""

    quality_penalty: float = 1.0  # ridge weight on the summed logistic loss, embeddings of unit length
    cost_penalty: float = 3.0  # ridge weight on the summed squared error of log cost
    num_folds: int = 5  # folds of groups for cross-fitting
    cost_quantile: float = 0.95  # the quantile that must fit into what remains

    def __post_init__(self) -> None:
        if self.quality_penalty <= 0 or self.cost_penalty <= 0:
            raise ConfigError(f"penalties must be > 0, got {self.quality_penalty} and {self.cost_penalty}")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds must be at least 2, got {self.num_folds}")
        if not 0.5 <= self.cost_quantile < 1:
            raise ConfigError(f"cost_quantile must be in [0.5, 1), got {self.cost_quantile}")


@dataclass(frozen=True)
class Estimates:
    """Predicted outcomes, each [N, K]."""

    quality: NDArray[np.float32]  # mean, in (0, 1)
    cost_usd: NDArray[np.float32]  # mean
    cost_high_usd: NDArray[np.float32]  # the high quantile of EstimatorConfig


@dataclass(frozen=True)
class OutcomeEstimator:
    """Linear models on an embedding; weights have the intercept as last row."""

    quality_weights: NDArray[np.float32]  # [D + 1, K], logit of quality
    cost_weights: NDArray[np.float32]  # [D + 1, K], mean of log cost in USD
    spread_weights: NDArray[np.float32]  # [D + 1, K], log of the typical deviation of log cost: some tasks run away
    log_cost_mean_shift: NDArray[np.float32]  # [K], log E[cost] - E[log cost]
    high_deviations: NDArray[np.float32]  # [K], the high quantile of log cost, in typical deviations

    @property
    def num_models(self) -> int:
        return int(self.quality_weights.shape[1])

    def predict(self, embedding: NDArray[np.floating]) -> Estimates:
        """Estimates of [N, D] queries. Raises DataError when D is not the fitted dimension."""
        num_dims = self.quality_weights.shape[0] - 1
        if embedding.ndim != 2 or embedding.shape[1] != num_dims:
            raise DataError(f"the estimator was fitted on {num_dims}-d embeddings, got shape {embedding.shape}")
        design = embedding.astype(np.float32)
        logit, log_cost, log_spread = (
            design @ weights[:-1] + weights[-1]
            for weights in (self.quality_weights, self.cost_weights, self.spread_weights)
        )
        return Estimates(
            quality=_sigmoid(logit),
            cost_usd=np.exp(log_cost + self.log_cost_mean_shift),
            cost_high_usd=np.exp(log_cost + np.exp(log_spread) * self.high_deviations),
        )

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> "OutcomeEstimator":
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Observations:
    """What was measured: [N] turns by [K] models."""

    embedding: NDArray[np.float32]  # [N, D]
    quality: FloatArray  # [N, K]; NaN: not observed
    log_cost: FloatArray  # [N, K]; NaN: not observed
    fold_key: NDArray[np.str_]  # [N]


def observe(sessions: Sessions) -> Observations:
    """One row a distinct group and embedding: a question that sessions reuse counts once, not once a session.

    Observed are the logged model and, where the logs bring them, other models' outcomes; repeated observations of
    one (group, model) are averaged.
    """
    quality, cost_usd = observed_outcomes(sessions)
    log_cost = np.log(np.maximum(cost_usd, MIN_COST_USD))
    group = np.unique(sessions.group_id, return_inverse=True)[1]
    vector_bytes = np.ascontiguousarray(sessions.embedding).view(np.dtype((np.void, 2 * sessions.embedding.shape[1])))
    vector = np.unique(vector_bytes.reshape(-1), return_inverse=True)[1]
    _, first, query = np.unique(group * (int(vector.max()) + 1) + vector, return_index=True, return_inverse=True)
    return Observations(
        embedding=sessions.embedding[first].astype(np.float32),
        quality=_mean_by(query, quality),
        log_cost=_mean_by(query, log_cost),
        fold_key=sessions.group_id[first],
    )


def _mean_by(key: IntArray, values: FloatArray) -> FloatArray:
    """Mean of the finite values of each key: [N, K] -> [max key + 1, K]; NaN where there is none."""
    known = np.isfinite(values)
    shape = (int(key.max()) + 1, values.shape[1])
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, key, np.where(known, values, 0.0))
    np.add.at(count, key, known)
    means: FloatArray = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return means


def fit_estimator(seen: Observations, config: EstimatorConfig, names: tuple[str, ...]) -> OutcomeEstimator:
    """Fit all models on all observations. Raises DataError naming a model that was hardly ever observed."""
    counts = np.isfinite(seen.quality).sum(axis=0)
    if (counts < MIN_ROWS_PER_MODEL).any():
        poor = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < MIN_ROWS_PER_MODEL]
        raise DataError(
            f"each model needs {MIN_ROWS_PER_MODEL} judged queries to be estimated; too few: {', '.join(poor)}"
        )
    columns = [_fit_model(seen.embedding, seen.quality[:, k], seen.log_cost[:, k], config) for k in range(len(names))]
    return OutcomeEstimator(*(np.stack(parts, axis=-1).astype(np.float32) for parts in zip(*columns, strict=True)))


def cross_fit(
    seen: Observations, config: EstimatorConfig, names: tuple[str, ...]
) -> tuple[IntArray, list[OutcomeEstimator]]:
    """One estimator a fold, fitted on the other folds, and the fold of each observation.

    The fold of a group is a hash of its id: it does not depend on what else is in the logs.
    """
    fold = fold_of(seen.fold_key, config.num_folds)
    return fold, [fit_estimator(_subset(seen, fold != held_out), config, names) for held_out in range(config.num_folds)]


def fold_of(group_id: NDArray[np.str_], num_folds: int) -> IntArray:
    """[N] fold of each group id, by hash."""
    unique, inverse = np.unique(group_id, return_inverse=True)
    digest = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % num_folds for name in unique.tolist()]
    return np.array(digest, dtype=np.int64)[inverse.reshape(-1)]


def cross_fitted_estimates(sessions: Sessions, config: EstimatorConfig) -> Estimates:
    """Estimates for the turns of the sessions themselves, each from a fold that did not see its group."""
    _, models = cross_fit(observe(sessions), config, sessions.catalog.names)
    fold = fold_of(sessions.group_id, config.num_folds)
    by_fold = [model.predict(sessions.embedding) for model in models]

    def pick(field: str) -> NDArray[np.float32]:
        return np.stack([getattr(estimates, field) for estimates in by_fold])[fold, np.arange(len(fold))]

    return Estimates(quality=pick("quality"), cost_usd=pick("cost_usd"), cost_high_usd=pick("cost_high_usd"))


def _subset(seen: Observations, mask: BoolArray) -> Observations:
    return Observations(seen.embedding[mask], seen.quality[mask], seen.log_cost[mask], seen.fold_key[mask])


def _fit_model(
    embedding: NDArray[np.float32], quality: FloatArray, log_cost: FloatArray, config: EstimatorConfig
) -> tuple[FloatArray | np.floating, ...]:
    """One model's column of each array of OutcomeEstimator."""
    judged, priced = np.isfinite(quality), np.isfinite(log_cost)
    design = _with_intercept(embedding)
    quality_weights = _ridge_logistic(design[judged], quality[judged], config.quality_penalty)
    x, y = design[priced], log_cost[priced]
    cost_weights = _solve_ridge(x, np.ones(len(x)), y, config.cost_penalty)
    # In-sample residuals of 257 weights are too small: leave-one-out residuals cost one more linear solve.
    residual = (y - x @ cost_weights) / (1.0 - _leverage(x, config.cost_penalty))
    spread_weights = _solve_ridge(x, np.ones(len(x)), np.log(np.abs(residual) + MIN_DEVIATION), config.cost_penalty)
    deviations = residual / np.exp(x @ spread_weights)
    mean_shift = np.log(np.mean(np.exp(residual)))
    return quality_weights, cost_weights, spread_weights, mean_shift, np.quantile(deviations, config.cost_quantile)


def _with_intercept(embedding: NDArray[np.float32]) -> FloatArray:
    return np.concatenate([embedding.astype(np.float64), np.ones((len(embedding), 1))], axis=1)


def _ridge_logistic(x: FloatArray, y: FloatArray, penalty: float, num_steps: int = 25) -> FloatArray:
    """Newton's method (iteratively reweighted least squares); the intercept is not penalised."""
    weights: FloatArray = np.zeros(x.shape[1])
    base_rate = np.clip(y.mean(), 1e-3, 1 - 1e-3)
    weights[-1] = np.log(base_rate / (1 - base_rate))
    for _ in range(num_steps):
        p = _sigmoid(x @ weights)
        curvature = np.maximum(p * (1 - p), 1e-6)
        updated = _solve_ridge(x, curvature, x @ weights + (y - p) / curvature, penalty)
        step = np.abs(updated - weights).max()
        weights = updated
        if step < 1e-6:
            break
    return weights


def _gram(x: FloatArray, row_weight: FloatArray, penalty: float) -> FloatArray:
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 1e-8
    return np.asarray((x * row_weight[:, None]).T @ x + np.diag(ridge))


def _solve_ridge(x: FloatArray, row_weight: FloatArray, target: FloatArray, penalty: float) -> FloatArray:
    return np.asarray(np.linalg.solve(_gram(x, row_weight, penalty), x.T @ (row_weight * target)))


def _leverage(x: FloatArray, penalty: float) -> FloatArray:
    gram = _gram(x, np.ones(len(x)), penalty)
    return np.asarray(np.minimum(np.einsum("nd,dn->n", x, np.linalg.solve(gram, x.T)), 0.99))


def _sigmoid(z: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -30, 30))))
