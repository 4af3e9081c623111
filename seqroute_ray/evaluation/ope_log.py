"""What a log says of another policy: its own paths cut by a budget, and how much each turn counts for the policy.

A logged session keeps its actions and costs; a budget of our choosing tells where it ends (core/mdp.py: the turn that
does not fit earns 0 and spends nothing, and so does all that follows). Questions and lengths are taken as given: what
a user asks next is assumed not to depend on which model answers.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.mdp import affordable
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import Policy, ReplayData, Turns

MAX_TOTAL_ERROR = 1e-6  # of a turn's target probabilities, which add up to 1


@dataclass(frozen=True)
class LoggedPaths:
    """S logged sessions of N turns under a budget each."""

    sessions: Sessions
    budget_nusd: IntArray  # [S]
    remaining_nusd: IntArray  # [N] before the turn; of no meaning where it was not decided
    decided: BoolArray  # [N] the session had not ended before
    served: BoolArray  # [N] decided, and paid for

    @property
    def bankrupt(self) -> BoolArray:
        """[S] sessions that end before their last turn is served."""
        return ~np.logical_and.reduceat(self.served, self.sessions.offsets[:-1])

    @property
    def judged(self) -> BoolArray:
        """[N] turns whose quality is known, under any budget."""
        return np.isfinite(self.sessions.quality)

    @property
    def known(self) -> BoolArray:
        """[N] turns whose reward is known: judged, or not served and so 0."""
        return self.judged | ~self.served

    @property
    def reward(self) -> FloatArray:
        """[N] quality of served turns; 0 elsewhere, and where it is not known."""
        quality = np.where(self.judged, self.sessions.quality, 0.0)
        return np.where(self.served, quality, 0.0).astype(np.float64)


def follow(sessions: Sessions, budget_nusd: IntArray) -> LoggedPaths:
    """Cut the logged sessions where their costs exceed the budget. budget_nusd: [S]."""
    spent = np.cumsum(sessions.cost_nusd)  # by the whole log up to and including the turn
    before_session = np.concatenate([[0], spent])[sessions.offsets[:-1]]
    budget = np.repeat(budget_nusd + before_session, sessions.num_turns)
    remaining = budget - spent + sessions.cost_nusd
    return LoggedPaths(sessions, budget_nusd, remaining, remaining >= 0, spent <= budget)


def check_propensities(sessions: Sessions) -> None:
    """Raises DataError where the log cannot tell how often it would have acted otherwise."""
    propensity, num_turns = sessions.propensity, len(sessions.propensity)
    missing = int(np.isnan(propensity).sum())
    if missing:
        raise DataError(
            f"{missing} of {num_turns} turns have no propensity (the chance of the logged model); log it with every "
            "turn, or leave those sessions out: it cannot be made up afterwards"
        )
    outside = np.flatnonzero((propensity <= 0) | (propensity > 1))
    if len(outside):
        raise DataError(
            f"propensity must be in (0, 1], got {propensity[outside[0]]} ({len(outside)} of {num_turns} turns): "
            "what was logged cannot have had no chance"
        )
    if (propensity == 1).all():
        raise DataError(
            f"propensity is 1 in all {num_turns} turns: this logger never tried anything else, so its log says nothing "
            "of another policy; serve with epsilon > 0 and evaluate on that log"
        )


class StochasticPolicy(Protocol):
    """Gives each model of a turn a chance."""

    def probabilities(self, data: ReplayData, turns: Turns) -> FloatArray:
        """[n, K], rows that add up to 1."""
        ...


@dataclass(frozen=True)
class Exploring:
    """A policy that, on a share of turns, takes any affordable model instead, as a server that explores does."""

    policy: Policy
    epsilon: float = 0.0

    def probabilities(self, data: ReplayData, turns: Turns) -> FloatArray:
        greedy = np.eye(data.layout.num_models)[self.policy.act(data, turns)]
        cost_usd, high_usd = data.estimates.cost_usd[turns.row], data.estimates.cost_high_usd[turns.row]
        allowed = affordable(cost_usd, high_usd, turns.remaining_usd)
        return np.asarray((1 - self.epsilon) * greedy + self.epsilon * allowed / allowed.sum(axis=1, keepdims=True))


def target_probabilities(policy: StochasticPolicy, data: ReplayData, paths: LoggedPaths) -> FloatArray:
    """[N, K] chances of each model in the logged states; uniform where the session had ended."""
    sessions = data.sessions
    target = np.full((len(sessions.action), len(sessions.catalog)), 1 / len(sessions.catalog))
    remaining_usd, budget_usd = to_usd(paths.remaining_nusd), to_usd(np.repeat(paths.budget_nusd, sessions.num_turns))
    for turn in range(int(sessions.num_turns.max())):
        rows = np.flatnonzero(paths.decided & (sessions.turn == turn))
        target[rows] = policy.probabilities(data, Turns(rows, turn, remaining_usd[rows], budget_usd[rows]))
    return target


def check_target(paths: LoggedPaths, target: FloatArray) -> None:
    """Raises DataError when target [N, K] holds no probabilities of the decided turns."""
    sessions = paths.sessions
    shape = (len(sessions.action), len(sessions.catalog))
    if target.shape != shape:
        raise DataError(f"target probabilities must have shape {shape}, turns by models, got {target.shape}")
    rows = target[paths.decided]
    off = ~(np.abs(rows.sum(axis=1) - 1) <= MAX_TOTAL_ERROR) | (rows < 0).any(axis=1)
    if off.any():
        raise DataError(
            f"target probabilities of a turn must be >= 0 and add up to 1, got {rows[off][0].tolist()} "
            f"({int(off.sum())} of {len(rows)} turns)"
        )


@dataclass(frozen=True)
class Weights:
    """Importance weights of the logged turns for a target policy."""

    target: FloatArray  # [N, K] as used
    before: FloatArray  # [N] product of the ratios of the session's turns before this one
    upto: FloatArray  # [N] and of this one; after bankruptcy it stays
    judging: FloatArray  # [N] 1 where the reward is sure, 1 / share judged where it was judged, 0 where it was not


def weigh(paths: LoggedPaths, target: FloatArray, follows_forced: bool = False) -> Weights:
    """Weights for target [N, K]; see check_propensities and check_target for the errors.

    follows_forced: at a propensity of 1 the logger had no choice (pinned model, tool call), and the target has none.
    """
    check_propensities(paths.sessions)
    check_target(paths, target)
    sessions, rows = paths.sessions, np.arange(len(target))
    propensity = sessions.propensity.astype(np.float64)
    if follows_forced:
        logged = np.eye(target.shape[1])[sessions.action]
        target = np.where((propensity == 1)[:, None], logged, target)
    ratio = np.where(paths.decided, target[rows, sessions.action] / propensity, 1.0)
    upto = ratio.copy()
    for turn in range(1, int(sessions.num_turns.max())):
        at = sessions.offsets[:-1][sessions.num_turns > turn] + turn
        upto[at] *= upto[at - 1]
    before = np.where(sessions.turn == 0, 1.0, np.roll(upto, 1))
    return Weights(target, before, upto, _judging(paths))


def _judging(paths: LoggedPaths) -> FloatArray:
    """[N] inverse chance of being judged, by logged model: judgements are taken as random beyond that."""
    action, judged = paths.sessions.action, paths.judged
    num_models = len(paths.sessions.catalog)
    share = np.bincount(action, weights=judged, minlength=num_models) / np.maximum(
        np.bincount(action, minlength=num_models), 1
    )
    inverse = np.where(judged, 1 / np.maximum(share[action], 1e-12), 0.0)
    return np.where(paths.served, inverse, 1.0)
