"""From logged outcomes to estimators: what was observed, one fit a model, and fits that did not see a group.

Training turns get *cross-fitted* estimates: from a fold that saw nothing of their group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.estimator import RUNAWAY, Column, Estimates, OutcomeEstimator, prices
from seqroute_ray.core.queries import (
    Queries,
    QueryFeatures,
    billed_tokens,
    common_types,
    log_known_tokens,
    typical_tokens,
)
from seqroute_ray.core.ridge import leave_one_out, logistic_ridge, ridge
from seqroute_ray.core.sessions import Sessions, observed_outcomes

MIN_TOKENS = 1.0  # of an answer, in logarithms: a call that was billed less
MIN_DEVIATION = 0.02  # of log tokens: keeps the logarithm of a perfect prediction finite
MIN_ROWS_PER_MODEL = 20  # below this a model's estimates would be its prior alone


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How outcomes are estimated: ridge penalties on the summed losses, by kind of feature."""

    type_penalty: float = 0.1  # of the type of task
    length_penalty: float = 1.0  # of the type times standardised log prompt tokens
    quality_penalty: float = 10.0  # of the embedding, which has unit length, for quality
    cost_penalty: float = 3.0  # of the embedding, for tokens
    runaway_penalty: float = 30.0  # of the embedding, for the chance of a runaway answer: such are rare
    num_folds: int = 5  # folds of groups for cross-fitting
    cost_quantile: float = 0.95  # the quantile that must fit into what remains

    def __post_init__(self) -> None:
        for name in ("type_penalty", "length_penalty", "quality_penalty", "cost_penalty", "runaway_penalty"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds must be at least 2, got {self.num_folds}")
        if not 0.5 <= self.cost_quantile < 1:
            raise ConfigError(f"cost_quantile must be in [0.5, 1), got {self.cost_quantile}")


@dataclass(frozen=True)
class Observations:
    """What was measured: [N] turns by [K] models."""

    queries: Queries
    quality: FloatArray  # [N, K]; NaN: not observed
    log_tokens: FloatArray  # [N, K] of the answer, as billed; NaN: not observed
    fold_key: NDArray[np.str_]  # [N]


def observe(sessions: Sessions) -> Observations:
    """One row a distinct group and embedding: a question that sessions reuse counts once, not once a session.

    Observed are the logged model and, where the logs bring them, other models' outcomes; repeated observations of
    one (group, model) are averaged.
    """
    quality, cost_usd = observed_outcomes(sessions)
    group = np.unique(sessions.group_id, return_inverse=True)[1]
    vector_bytes = np.ascontiguousarray(sessions.embedding).view(np.dtype((np.void, 2 * sessions.embedding.shape[1])))
    vector = np.unique(vector_bytes.reshape(-1), return_inverse=True)[1]
    _, first, query = np.unique(group * (int(vector.max()) + 1) + vector, return_index=True, return_inverse=True)
    price_in, price_token = prices(sessions.catalog)
    logs = log_known_tokens(sessions.queries)
    prompt_tokens = billed_tokens(sessions.queries, typical_tokens(float(logs.mean()), float(logs.std())))
    answer_usd = cost_usd - prompt_tokens[:, None] * price_in
    tokens = answer_usd / np.where(price_token > 0, price_token, 1.0)  # a free model's tokens cost nothing: any will do
    log_tokens = np.log(np.maximum(tokens, MIN_TOKENS))
    return Observations(
        queries=sessions.queries.take(first),
        quality=_mean_by(query, quality),
        log_tokens=_mean_by(query, log_tokens),
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


def fit_estimator(
    seen: Observations, config: EstimatorConfig, names: tuple[str, ...], types: NDArray[np.str_] | None = None
) -> OutcomeEstimator:
    """Fit all models on all observations. Raises DataError naming a model that was hardly ever observed.

    types: the types of task to tell apart; None: common_types of the observations.
    """
    counts = np.isfinite(seen.quality).sum(axis=0)
    if (counts < MIN_ROWS_PER_MODEL).any():
        poor = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < MIN_ROWS_PER_MODEL]
        raise DataError(
            f"each model needs {MIN_ROWS_PER_MODEL} judged queries to be estimated; too few: {', '.join(poor)}"
        )
    features = QueryFeatures.fit(seen.queries, common_types(seen.queries, seen.fold_key) if types is None else types)
    design = features.design(seen.queries, features.summary(seen.queries)).astype(np.float64)
    columns = [
        fit_column(features, design, seen.quality[:, k], seen.log_tokens[:, k], config) for k in range(len(names))
    ]
    return OutcomeEstimator.of_columns(features, columns)


def cross_fit(seen: Observations, config: EstimatorConfig, names: tuple[str, ...]) -> list[OutcomeEstimator]:
    """One estimator a fold, fitted on the other folds.

    The fold of a group is a hash of its id: it does not depend on what else is in the logs.
    """
    fold, types = fold_of(seen.fold_key, config.num_folds), common_types(seen.queries, seen.fold_key)
    kept = [_subset(seen, fold != held_out) for held_out in range(config.num_folds)]
    return [fit_estimator(part, config, names, types) for part in kept]


def fold_of(group_id: NDArray[np.str_], num_folds: int) -> IntArray:
    """[N] fold of each group id, by hash."""
    keys = np.array([_fold_key(name) for name in group_id.tolist()], dtype=np.uint64)
    return (keys % num_folds).astype(np.int64)


@lru_cache(maxsize=1 << 16)  # questions come again and again
def _fold_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def held_out(models: Sequence[OutcomeEstimator], sessions: Sessions) -> tuple[Estimates, NDArray[np.float32]]:
    """Estimates and QueryFeatures.summary of N turns, each by the one of `cross_fit` that did not see its group."""
    fold = fold_of(sessions.group_id, len(models))
    estimates = Estimates.empty(len(fold), len(sessions.catalog))
    summary = np.empty((len(fold), models[0].features.summary_width), dtype=np.float32)
    for left_out, model in enumerate(models):
        rows = np.flatnonzero(fold == left_out)
        queries = sessions.queries.take(rows)
        queries = replace(queries, embedding=queries.embedding.astype(np.float32))
        summary[rows] = model.features.summary(queries)
        estimates.put(rows, model.predict_from(summary[rows], queries, sessions.catalog))
    return estimates, summary


def cross_fitted(sessions: Sessions, config: EstimatorConfig) -> tuple[Estimates, NDArray[np.float32]]:
    """`held_out` of the sessions that the estimators are fitted on."""
    return held_out(cross_fit(observe(sessions), config, sessions.catalog.names), sessions)


def _subset(seen: Observations, mask: BoolArray) -> Observations:
    return Observations(seen.queries.take(mask), seen.quality[mask], seen.log_tokens[mask], seen.fold_key[mask])


def fit_column(
    features: QueryFeatures,
    design: FloatArray,
    quality: FloatArray,
    log_tokens: FloatArray,
    config: EstimatorConfig,
    prior: Column | None = None,
) -> Column:
    """Fit one model. design: [N, F]; quality, log_tokens: [N], NaN unknown. Weights are drawn to the prior, or to 0."""
    drawn_to = {name: getattr(prior, name, None) for name in Column.__dataclass_fields__}
    judged, billed = np.isfinite(quality), np.isfinite(log_tokens)
    light = (config.type_penalty, config.length_penalty)
    quality_weights = logistic_ridge(
        design[judged],
        quality[judged],
        features.penalty(*light, config.quality_penalty),
        drawn_to["quality_weights"],
    )
    x, y, penalty = design[billed], log_tokens[billed], features.penalty(*light, config.cost_penalty)
    token_weights = ridge(x, y, penalty, drawn_to["token_weights"])
    # In-sample residuals of hundreds of weights are too small: leave-one-out residuals cost one more linear solve.
    residual = leave_one_out(x, y - x @ token_weights, penalty)
    spread_weights = ridge(x, np.log(np.abs(residual) + MIN_DEVIATION), penalty, drawn_to["spread_weights"])
    deviations = residual / np.exp(x @ spread_weights)
    mean_shift = float(np.log(np.mean(np.exp(residual))))
    runs_away = residual - mean_shift > np.log(RUNAWAY)
    runaway_penalty = features.penalty(*light, config.runaway_penalty)
    return Column(
        quality_weights=quality_weights,
        token_weights=token_weights,
        spread_weights=spread_weights,
        runaway_weights=logistic_ridge(x, runs_away.astype(np.float64), runaway_penalty, drawn_to["runaway_weights"]),
        # Where none was seen, the least that counts as one.
        runaway_log_tokens=float(y[runs_away].mean() if runs_away.any() else y.mean() + mean_shift + np.log(RUNAWAY)),
        log_mean_shift=mean_shift,
        high_deviations=float(np.quantile(deviations, config.cost_quantile)),
    )
