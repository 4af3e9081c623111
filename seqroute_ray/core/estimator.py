"""Outcome estimates: quality and cost of every (query, model).

One regularised linear model on the features of `queries.py` for each model of the pool: logistic for quality,
log-linear for the answer's tokens, which the catalog prices; `fitting.py` learns them from logged outcomes. A Q-network
on the raw embedding memorises the 0/1 noise of a few thousand questions; these estimates are what it plans on instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.queries import Queries, QueryFeatures
from seqroute_ray.core.ridge import sigmoid
from seqroute_ray.core.risk import RiskTable

RUNAWAY = 4.0  # times the mean


@dataclass(frozen=True)
class Estimates:
    """Predicted outcomes, each [N, K]."""

    quality: NDArray[np.float32]  # mean, in (0, 1)
    cost_usd: NDArray[np.float32]  # mean
    cost_high_usd: NDArray[np.float32]  # the high quantile of fitting.EstimatorConfig
    runaway: NDArray[np.float32]  # chance of an answer of more than RUNAWAY times its mean, in (0, 1)
    runaway_cost_usd: NDArray[np.float32]  # of such an answer; at least the high quantile

    def take(self, rows: IntArray) -> "Estimates":
        return Estimates(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def empty(cls, num_rows: int, num_models: int) -> "Estimates":
        return cls(*(np.empty((num_rows, num_models), dtype=np.float32) for _ in fields(cls)))

    @classmethod
    def concatenate(cls, parts: Sequence["Estimates"]) -> "Estimates":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def put(self, rows: IntArray, other: "Estimates") -> None:
        """Overwrite some rows."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


@dataclass(frozen=True)
class Column:
    """One model's column of each array of OutcomeEstimator."""

    quality_weights: FloatArray  # [F]
    token_weights: FloatArray  # [F]
    spread_weights: FloatArray  # [F]
    runaway_weights: FloatArray  # [F]
    runaway_log_tokens: float
    log_mean_shift: float
    high_deviations: float


@dataclass(frozen=True)
class OutcomeEstimator:
    """Linear models on the [F] features of a query."""

    features: QueryFeatures
    quality_weights: NDArray[np.float32]  # [F, K], logit of quality
    token_weights: NDArray[np.float32]  # [F, K], mean of log answer tokens
    spread_weights: NDArray[np.float32]  # [F, K], log of the typical deviation of log tokens: some tasks run away
    runaway_weights: NDArray[np.float32]  # [F, K], logit of a runaway answer
    runaway_log_tokens: NDArray[np.float32]  # [K], of a typical runaway answer: mostly the model's own limit
    log_mean_shift: NDArray[np.float32]  # [K], log E[tokens] - E[log tokens]
    high_deviations: NDArray[np.float32]  # [K], the high quantile of log tokens, in typical deviations
    risk: RiskTable | None = None  # of its types of task; None: none was planned, the Q-network's head says it

    @property
    def num_models(self) -> int:
        return int(self.quality_weights.shape[1])

    def predict(self, queries: Queries, catalog: Catalog) -> Estimates:
        """Estimates for N queries, priced by the catalog. Raises DataError on an embedding of another width."""
        return self.predict_from(self.features.summary(queries), queries, catalog)

    def predict_from(self, summary: NDArray[np.float32], queries: Queries, catalog: Catalog) -> Estimates:
        """The same, for a caller that needs the queries' summary too."""
        # All in [K, N]: loops over queries are long, loops over models are short. The products are those of
        # features.design @ weights, without the copy of the embeddings that a design is.
        of_terms, of_embedding = self.regressions
        fitted = of_embedding @ queries.embedding.astype(np.float32, copy=False).T
        fitted += of_terms @ self.features.terms(summary).T
        (quality, runaway), (log_tokens, log_spread) = np.split(fitted.reshape(4, self.num_models, len(queries)), 2)
        mean_shift, deviations, runaway_log_tokens = (
            values[:, None] for values in (self.log_mean_shift, self.high_deviations, self.runaway_log_tokens)
        )
        price_in, price_token = (price.astype(np.float32)[:, None] for price in prices(catalog))
        prompt_usd = price_in * self.features.billed_tokens(queries).astype(np.float32)
        log_answers = (log_tokens + mean_shift, log_tokens + np.exp(log_spread) * deviations, runaway_log_tokens)
        cost_usd, high_usd, runaway_usd = (prompt_usd + price_token * np.exp(tokens) for tokens in log_answers)
        return Estimates(
            quality=sigmoid(quality).T,
            cost_usd=cost_usd.T,
            cost_high_usd=high_usd.T,
            runaway=sigmoid(runaway).T,
            runaway_cost_usd=np.maximum(runaway_usd, high_usd).T,
        )

    @cached_property
    def regressions(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """All regressions, one product instead of four: [4 K, 2 R] of QueryFeatures.terms, [4 K, D] of embeddings."""
        parts = (self.quality_weights, self.runaway_weights, self.token_weights, self.spread_weights)
        weights, num_terms = np.concatenate(parts, axis=1).T, 2 * self.features.num_types
        return np.ascontiguousarray(weights[:, :num_terms]), np.ascontiguousarray(weights[:, num_terms:])

    @classmethod
    def of_columns(cls, features: QueryFeatures, columns: Sequence[Column]) -> "OutcomeEstimator":
        """The models' columns, in the order of the pool."""
        parts = {
            name: np.stack([getattr(column, name) for column in columns], axis=-1).astype(np.float32)
            for name in Column.__dataclass_fields__
        }
        return cls(features=features, **parts)  # type: ignore[arg-type]  # none of the arrays is the plan

    def columns(self) -> list[Column]:
        """Inverse of of_columns."""
        return [
            Column(**{name: getattr(self, name)[..., k].astype(np.float64) for name in Column.__dataclass_fields__})
            for k in range(self.num_models)
        ]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        own = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("features", "risk")
        }
        parts = {"features": self.features.arrays(), "risk": self.risk.arrays() if self.risk else {}}
        return own | {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "OutcomeEstimator":
        def part(prefix: str) -> dict[str, NDArray[np.generic]]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        own = {name: arrays[name] for name in cls.__dataclass_fields__ if name not in ("features", "risk")}
        features, risk = QueryFeatures.from_arrays(part("features.")), RiskTable.from_arrays(part("risk."))
        return cls(features=features, risk=risk, **own)  # type: ignore[arg-type]


def prices(catalog: Catalog) -> tuple[FloatArray, FloatArray]:
    """[K] USD a prompt token, and a unit of what the prompt does not explain: an output token where those cost."""
    price_in, price_out = catalog.usd_per_token()
    return price_in, np.where(price_out > 0, price_out, price_in)
