"""The finite-horizon MDP: state, reward, budget step, affordability. Defined here only.

Relabeling, training, evaluation and serving all call these functions, so a state means the same everywhere.

State   estimates of this query's outcomes, their mean over the session's earlier turns, remaining money in absolute
        terms, turn index, model of the previous turn.
Action  the model that answers, an index of the catalog.
Reward  the turn's quality, or minus `bankruptcy_penalty` when its cost exceeds what remains; no cost term.
End     the last turn, or bankruptcy: the session is cut there, the turn's quality counts 0 and its cost is not spent.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.estimator import MIN_COST_USD, Estimates

NO_ACTION = -1  # previous action of a session's first turn
REFERENCE_TURNS = 8  # the reference cost of a pool is this many mean turns of its dearest model
MIN_BUDGET_SHARE = 1e-4  # of the reference cost: less than this is "nothing" to the network


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayout:
    """What the numbers of a state are scaled by: part of the policy artefact."""

    num_models: int
    reference_cost_usd: float  # fixed normaliser of money, from the fit part
    expected_turns_left: tuple[float, ...]  # [T] mean turns still to come, this one included, by turn index

    def __post_init__(self) -> None:
        if not self.reference_cost_usd > 0:
            raise ConfigError(
                f"reference_cost_usd must be > 0, got {self.reference_cost_usd}: is every model of the pool free?"
            )
        if not self.expected_turns_left:
            raise ConfigError("expected_turns_left needs at least one turn")

    @staticmethod
    def features_of(num_models: int) -> int:
        """Width of turn_features, the first entries of a state."""
        return 6 * num_models

    @property
    def num_features(self) -> int:
        return self.features_of(self.num_models)

    @property
    def state_dim(self) -> int:
        return self.num_features + 2 * self.num_models + 6

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "StateLayout":
        return cls(**{**fields, "expected_turns_left": tuple(fields["expected_turns_left"])})


def reference_cost_usd(cost_usd: FloatArray, action: IntArray, num_models: int) -> float:
    """REFERENCE_TURNS x the mean turn cost of the dearest model, from [N] logged turns."""
    total = np.bincount(action, weights=cost_usd, minlength=num_models)
    count = np.bincount(action, minlength=num_models)
    return float(REFERENCE_TURNS * np.max(total / np.maximum(count, 1)))


def expected_turns_left(num_turns: IntArray) -> tuple[float, ...]:
    """Mean turns still to come at each turn index, this one included, over [S] session lengths."""
    return tuple(float(np.mean(num_turns[num_turns > t] - t)) for t in range(int(num_turns.max())))


def outcome_features(estimates: Estimates, layout: StateLayout) -> NDArray[np.float32]:
    """[N, 3K]: every model's estimated quality, log cost, and how far its cost may run away; roughly in [-3, 3]."""
    turn_share = REFERENCE_TURNS * np.maximum(estimates.cost_usd, MIN_COST_USD) / layout.reference_cost_usd
    runaway = np.log(np.maximum(estimates.cost_high_usd, MIN_COST_USD) / np.maximum(estimates.cost_usd, MIN_COST_USD))
    return np.concatenate([4 * estimates.quality - 3, np.log(turn_share) / 2 + 1, runaway], axis=1).astype(np.float32)


def earlier_mean(outcomes: NDArray[np.float32], offsets: IntArray) -> NDArray[np.float32]:
    """[N, F] mean of the earlier turns' rows of the same session; zeros at a first turn."""
    means = np.zeros_like(outcomes)
    turn = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    running = np.zeros((len(offsets) - 1, outcomes.shape[1]), dtype=np.float64)
    session = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for t in range(int(turn.max(initial=-1)) + 1):
        rows = np.flatnonzero(turn == t)
        means[rows] = running[session[rows]] / max(t, 1)
        running[session[rows]] += outcomes[rows]
    return means


def turn_features(outcomes: NDArray[np.float32], earlier: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 6K]: this turn's outcome_features and their mean over earlier turns. Independent of the actions taken."""
    return np.concatenate([outcomes, earlier], axis=1)


def encode_state(
    layout: StateLayout,
    features: NDArray[np.float32],
    remaining_usd: FloatArray,
    turn: IntArray,
    previous_action: IntArray,
) -> NDArray[np.float32]:
    """The network's input [N, state_dim] from turn_features [N, 6K] and the session's [N] book-keeping."""
    k, width = layout.num_models, layout.num_features
    state = np.zeros((len(features), layout.state_dim), dtype=np.float32)
    state[:, :width] = features
    rows = np.flatnonzero(previous_action != NO_ACTION)
    state[rows, width + previous_action[rows]] = 1.0
    share = np.maximum(remaining_usd / layout.reference_cost_usd, MIN_BUDGET_SHARE)
    left = np.asarray(layout.expected_turns_left)[np.minimum(turn, len(layout.expected_turns_left) - 1)]
    log_turn_share = np.log(share * REFERENCE_TURNS / left)
    # How often each model's predicted cost fits into an even split of what remains, in logarithms.
    log_cost = 2 * (features[:, k : 2 * k] - 1)
    state[:, width + k : width + 2 * k] = np.clip(log_turn_share[:, None] - log_cost, -4, 4) / 2
    money_and_time = (
        np.log(share) / 2 + 1,
        np.minimum(share, 1),
        np.minimum(10 * share, 1),
        log_turn_share / 2,
        turn / 12,
        left / 12,
    )
    state[:, width + 2 * k :] = np.stack(money_and_time, axis=1)
    return state


def affordable(cost_high_usd: NDArray[np.floating], remaining_usd: FloatArray) -> BoolArray:
    """[N, K] models whose high cost quantile [N, K] fits into what remains [N].

    Where none fits, the one with the lowest quantile stays: the choice is then between it and stopping.
    """
    fits = cost_high_usd <= remaining_usd[:, None]
    cheapest = np.argmin(cost_high_usd, axis=1)
    fits[np.arange(len(fits)), cheapest] |= ~fits.any(axis=1)
    return fits
