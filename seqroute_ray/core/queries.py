"""What is known of a query before it is answered, and the features from which its outcomes are estimated.

Most of what a text tells about outcomes is the type of its task; within a type, mostly its length. So the features
are the type (as the caller names it, else as the embedding suggests), the type times the logarithm of the prompt's
tokens, and the embedding itself, under a heavier penalty.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.ridge import logistic_ridge, sigmoid

UNKNOWN_TYPE = ""
MIN_GROUPS_PER_TYPE = 50  # a type of fewer groups is not told apart from the others
MAX_LENGTH = 3.0  # deviations of log prompt tokens from their mean: beyond, a fitted line would run away
TYPE_PENALTY = 0.1  # of the classifier; embeddings have unit length


@dataclass(frozen=True)
class Queries:
    """N queries before any model has answered them."""

    embedding: NDArray[np.floating]  # [N, D]
    task_type: NDArray[np.str_]  # [N] as the caller names it; UNKNOWN_TYPE where it does not
    prompt_tokens: IntArray  # [N]; 0 where unknown

    def __len__(self) -> int:
        return len(self.embedding)

    def take(self, rows: IntArray | NDArray[np.bool_]) -> "Queries":
        return Queries(self.embedding[rows], self.task_type[rows], self.prompt_tokens[rows])


@dataclass(frozen=True)
class QueryFeatures:
    """The feature map, fitted on training queries."""

    types: NDArray[np.str_]  # [R]; one unnamed type where the logs name none
    type_weights: NDArray[np.float32]  # [D + 1, R] logit of each type, the intercept last
    # [2] mean and deviation of log prompt tokens; a deviation of inf: length tells nothing; a mean of 0: never logged.
    log_tokens: NDArray[np.float32]

    @property
    def num_dims(self) -> int:
        """Width of the embedding."""
        return len(self.type_weights) - 1

    @property
    def num_types(self) -> int:
        return len(self.types)

    @property
    def summary_width(self) -> int:
        return self.num_types + 1

    @classmethod
    def fit(cls, queries: Queries, types: NDArray[np.str_]) -> "QueryFeatures":
        """types: see common_types."""
        logs = log_known_tokens(queries)
        # Lengths that do not vary, or are not logged at all, must say nothing of a later query that has one.
        log_tokens = np.array([logs.mean(), logs.std() if logs.std() > 1e-3 else np.inf], dtype=np.float32)
        if len(types) < 2:
            no_weights = np.zeros((queries.embedding.shape[1] + 1, 1), dtype=np.float32)
            return cls(np.array([UNKNOWN_TYPE]), no_weights, log_tokens)
        labelled = np.isin(queries.task_type, types)
        design = _with_intercept(queries.embedding[labelled])
        penalty = np.full(design.shape[1], TYPE_PENALTY)
        is_type = (queries.task_type[labelled][:, None] == types).astype(np.float64)
        weights = [logistic_ridge(design, is_type[:, r], penalty) for r in range(len(types))]
        return cls(types, np.stack(weights, axis=1).astype(np.float32), log_tokens)

    def summary(self, queries: Queries) -> NDArray[np.float32]:
        """[N, R + 1]: share of each type, and standardised log prompt tokens (0 where unknown).

        Raises DataError when the embedding has not the fitted width.
        """
        if queries.embedding.ndim != 2 or queries.embedding.shape[1] != self.num_dims:
            raise DataError(
                f"the estimator was fitted on {self.num_dims}-d embeddings, got shape {queries.embedding.shape}"
            )
        named = self.types[:, None] == queries.task_type  # [R, N]: loops over queries are long, those over types short
        known = named.any(axis=0)
        summary = np.empty((self.summary_width, len(queries)), dtype=np.float32)
        summary[:-1] = named if known.all() else np.where(known, named, self._suggested(queries.embedding))
        tokens = np.maximum(queries.prompt_tokens, 1)
        length = np.clip((np.log(tokens) - self.log_tokens[0]) / self.log_tokens[1], -MAX_LENGTH, MAX_LENGTH)
        summary[-1] = np.where(queries.prompt_tokens > 0, length, 0.0)
        return summary.T

    def _suggested(self, embedding: NDArray[np.floating]) -> NDArray[np.floating]:
        """[R, N] share of each type, as the embedding suggests."""
        logits = embedding.astype(np.float32, copy=False) @ self.type_weights[:-1] + self.type_weights[-1]
        chance = sigmoid(np.ascontiguousarray(logits.T))
        return np.asarray(chance / chance.sum(axis=0))

    @property
    def typical_tokens(self) -> float:
        """See typical_tokens."""
        mean, deviation = (float(x) for x in self.log_tokens)
        return typical_tokens(mean, deviation if np.isfinite(deviation) else 0.0)

    def billed_tokens(self, queries: Queries) -> FloatArray:
        """[N] prompt tokens to be priced; see billed_tokens."""
        return billed_tokens(queries, self.typical_tokens)

    def terms(self, summary: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, 2 R]: types, types times length."""
        share, length = summary[:, :-1], summary[:, -1:]
        return np.concatenate([share, share * length], axis=1)

    def design(self, queries: Queries, summary: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, 2 R + D]: types, types times length, embedding. summary: of the same queries."""
        return np.concatenate([self.terms(summary), queries.embedding.astype(np.float32, copy=False)], axis=1)

    def penalty(self, of_type: float, of_length: float, of_embedding: float) -> FloatArray:
        """[2 R + D] ridge penalties by kind of feature."""
        widths = (self.num_types, self.num_types, self.num_dims)
        return np.repeat([of_type, of_length, of_embedding], widths)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "QueryFeatures":
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})  # type: ignore[arg-type]


def typical_tokens(log_mean: float, log_deviation: float) -> float:
    """Prompt tokens to be priced where they are unknown: the mean of a log-normal count (not its median).

    0 when no prompt was ever counted (log_mean 0): the answers' costs then hold the prompts'.
    """
    return float(np.exp(log_mean + log_deviation**2 / 2)) if log_mean > 0 else 0.0


def billed_tokens(queries: Queries, typical: float) -> FloatArray:
    """[N] prompt tokens to be priced; 0 everywhere when none was ever counted, see typical_tokens."""
    if typical == 0:
        return np.zeros(len(queries))
    return np.where(queries.prompt_tokens > 0, queries.prompt_tokens, typical)


def log_known_tokens(queries: Queries) -> FloatArray:
    """Logarithms of the prompt tokens that are known; a single 0 where none is."""
    known = queries.prompt_tokens[queries.prompt_tokens > 0]
    return np.log(known) if len(known) else np.zeros(1)


def common_types(queries: Queries, group: NDArray[np.str_]) -> NDArray[np.str_]:
    """The types of task that occur in enough groups [N] to be told apart, in every fold."""
    pairs = np.unique(np.stack([queries.task_type, group.astype(np.str_)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    return np.asarray(names[(names != UNKNOWN_TYPE) & (counts >= MIN_GROUPS_PER_TYPE)])


def _with_intercept(embedding: NDArray[np.floating]) -> FloatArray:
    return np.concatenate([embedding.astype(np.float64), np.ones((len(embedding), 1))], axis=1)
