"""The finite-horizon MDP: state, reward, budget step, affordability. Defined here only.

Relabeling, training, evaluation and serving all call these functions, so a state means the same everywhere.

State   context: remaining money in absolute terms, turn index, what the session's turns so far were about;
        and for each model: its estimated quality, and what would remain after paying its estimated cost.
Action  the model that answers, an index of the catalog.
Reward  the turn's quality, or minus `bankruptcy_penalty` when its cost exceeds what remains; no cost term.
End     the last turn, or bankruptcy: the session is cut there, the turn's quality counts 0 and its cost is not spent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.ridge import sigmoid

REFERENCE_TURNS = 8  # the reference cost of a pool is this many mean turns of its dearest model
MIN_BUDGET_SHARE = 1e-4  # of the reference cost: less than this is "nothing" to the network
MIN_COST_USD = 1e-9  # one nano-dollar: a free call's cost in logarithms
MIN_RUNAWAY = 1e-3  # a chance below this is "never" to the network
MIN_TURNS_AFTER = 0.25  # expected turns after this one, as a divisor
NUM_MONEY = 6  # entries of a context that are about money and time
NUM_AFTER = 6  # entries of a state about what each model would leave
NUM_RISK = 1  # the last of them, about answers that run away: for the chance of bankruptcy alone
RUNAWAY_BLUR = 0.1  # in logarithms: how sharply a runaway answer fits into what remains or does not


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLayout:
    """What the numbers of a state are scaled by: part of the policy artefact.

    A state is the context [num_context], the models' quality [K], and what each would leave [K * NUM_AFTER].
    """

    num_models: int
    summary_width: int  # of the estimator's QueryFeatures.summary
    reference_cost_usd: float  # fixed normaliser of money, from the fit part
    expected_turns_left: tuple[float, ...]  # [T] mean turns still to come, this one included, by turn index

    def __post_init__(self) -> None:
        if not self.reference_cost_usd > 0:
            raise ConfigError(
                f"reference_cost_usd must be > 0, got {self.reference_cost_usd}: is every model of the pool free?"
            )
        if not self.expected_turns_left:
            raise ConfigError("expected_turns_left needs at least one turn")

    @property
    def num_context(self) -> int:
        return NUM_MONEY + self.summary_width

    @property
    def state_dim(self) -> int:
        return self.num_context + self.num_models * (1 + NUM_AFTER)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "StateLayout":
        return cls(**{**fields, "expected_turns_left": tuple(fields["expected_turns_left"])})


@dataclass(frozen=True)
class TurnFeatures:
    """What a state needs to know of N turns; independent of budgets and of the actions taken."""

    estimates: Estimates  # [N, K] of this turn's outcomes
    history: NDArray[np.float32]  # [N, summary_width] mean QueryFeatures.summary of the session's turns up to this one

    def __len__(self) -> int:
        return len(self.history)

    def take(self, rows: IntArray) -> "TurnFeatures":
        return TurnFeatures(self.estimates.take(rows), self.history[rows])

    @classmethod
    def concatenate(cls, parts: Sequence["TurnFeatures"]) -> "TurnFeatures":
        estimates = Estimates.concatenate([part.estimates for part in parts])
        return cls(estimates, np.concatenate([part.history for part in parts]))


def reference_cost_usd(cost_usd: FloatArray, action: IntArray, num_models: int) -> float:
    """REFERENCE_TURNS x the mean turn cost of the dearest model, from [N] logged turns."""
    total = np.bincount(action, weights=cost_usd, minlength=num_models)
    count = np.bincount(action, minlength=num_models)
    return float(REFERENCE_TURNS * np.max(total / np.maximum(count, 1)))


def expected_turns_left(num_turns: IntArray) -> tuple[float, ...]:
    """Mean turns still to come at each turn index, this one included, over [S] session lengths."""
    return tuple(float(np.mean(num_turns[num_turns > t] - t)) for t in range(int(num_turns.max())))


def running_mean(values: NDArray[np.float32], offsets: IntArray) -> NDArray[np.float32]:
    """[N, F] mean of the rows of a session up to and including this one; sessions are cut at offsets [S + 1]."""
    total = np.cumsum(values, axis=0, dtype=np.float64)
    before = np.concatenate([np.zeros((1, values.shape[1])), total])[offsets[:-1]]
    position = np.arange(1, offsets[-1] + 1) - np.repeat(offsets[:-1], np.diff(offsets))
    return np.asarray((total - np.repeat(before, np.diff(offsets), axis=0)) / position[:, None], dtype=np.float32)


def encode_state(
    layout: StateLayout, turns: TurnFeatures, remaining_usd: FloatArray, turn: IntArray
) -> NDArray[np.float32]:
    """The network's input [N, state_dim] from N turns and the sessions' [N] book-keeping; see StateLayout."""
    table = layout.expected_turns_left
    left = np.asarray(table)[np.minimum(turn, len(table) - 1)]
    share = np.maximum(remaining_usd / layout.reference_cost_usd, MIN_BUDGET_SHARE)
    num_context, num_models = layout.num_context, layout.num_models
    state = np.empty((len(turns), layout.state_dim), dtype=np.float32)
    state[:, 0] = np.log(share) / 2 + 1
    state[:, 1] = np.minimum(share, 1)
    state[:, 2] = np.minimum(10 * share, 1)
    state[:, 3] = np.log(share * REFERENCE_TURNS / left) / 2
    state[:, 4] = turn / 12
    state[:, 5] = left / 12
    state[:, NUM_MONEY:num_context] = turns.history
    state[:, num_context : num_context + num_models] = turns.estimates.quality
    after = after_state(layout, turns.estimates, remaining_usd, left)
    state[:, num_context + num_models :] = after.reshape(len(after), num_models * NUM_AFTER)  # -1: not for no rows
    return state


def after_state(
    layout: StateLayout, estimates: Estimates, remaining_usd: FloatArray, turns_left: FloatArray
) -> NDArray[np.float32]:
    """[N, K, NUM_AFTER]: what paying each model would leave, at its mean cost and at the high quantile."""
    costs = (estimates.cost_usd, estimates.cost_high_usd, estimates.runaway_cost_usd)
    cost_usd = np.maximum(np.stack(costs), np.float32(MIN_COST_USD))  # [3, N, K]
    remaining = remaining_usd[:, None]
    left = np.maximum((remaining - cost_usd[:2]) / layout.reference_cost_usd, MIN_BUDGET_SHARE)
    log_cost, log_left = np.log(cost_usd), np.log(left.astype(np.float32))
    log_turns_after = np.log(np.maximum(turns_left - 1, MIN_TURNS_AFTER) / REFERENCE_TURNS)[:, None]
    # The chance that a runaway answer of this turn does not fit into what remains.
    excess = log_cost[2] - np.log(np.maximum(remaining, MIN_COST_USD))
    overrun = estimates.runaway * sigmoid(excess / RUNAWAY_BLUR)
    after = np.empty((*cost_usd.shape[1:], NUM_AFTER), dtype=np.float32)
    after[..., 0] = log_cost[1] - log_cost[0]  # how widely the cost spreads
    after[..., 1] = log_left[0] / 2 + 1
    after[..., 2] = log_left[1] / 2 + 1
    after[..., 3] = (log_left[0] - log_turns_after) / 2
    after[..., 4] = np.minimum(10 * left[0], 1)
    after[..., 5] = np.log(overrun + MIN_RUNAWAY) / 2 + 2
    return after


def affordable(
    cost_usd: NDArray[np.floating], cost_high_usd: NDArray[np.floating], remaining_usd: FloatArray
) -> BoolArray:
    """[N, K] models whose high cost quantile [N, K] fits into what remains [N]; and the one of the lowest mean cost.

    That one always stays: where nothing fits the choice is between it and stopping, and more money never masks it.
    """
    fits = cost_high_usd <= remaining_usd[:, None]
    fits[np.arange(len(fits)), np.argmin(cost_usd, axis=1)] = True
    return fits
