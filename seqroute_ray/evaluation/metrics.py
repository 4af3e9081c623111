"""Figures of a replay, with intervals that resample questions.

Sessions reuse questions, so resampling sessions alone gives intervals several times too narrow. Each bootstrap
replicate draws the questions of every source with replacement; a session then counts 1 + sum over its turns of
(draws of the turn's question - 1): the first-order weight of a statistic of several questions. All policies share
the replicates, so differences between two of them are paired.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult

Interval = tuple[float, float]


@dataclass(frozen=True)
class Replicates:
    """Bootstrap weights of sessions, shared by all policies of a report."""

    weight: NDArray[np.float32]  # [R, S]
    num_turns: FloatArray  # [S]

    def ratio(self, per_session: FloatArray, denominator: FloatArray) -> FloatArray:
        """[R] weighted sum of per_session [S] over weighted sum of denominator [S]."""
        return np.asarray(self.weight @ per_session / (self.weight @ denominator))


def question_replicates(sessions: Sessions, num_replicates: int, seed: int) -> Replicates:
    """Draw the bootstrap weights of a set of sessions."""
    rng = np.random.default_rng(seed)
    names, question = np.unique(sessions.group_id, return_inverse=True)
    question = question.reshape(-1)
    source_of = np.empty(len(names), dtype=sessions.source.dtype)
    source_of[question] = sessions.source
    draws = np.zeros((num_replicates, len(names)), dtype=np.float32)
    for source in np.unique(source_of):
        members = np.flatnonzero(source_of == source)
        draws[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num_replicates)
    session = np.repeat(np.arange(sessions.num_sessions), sessions.num_turns)
    uses = np.zeros((len(names), sessions.num_sessions), dtype=np.float32)
    np.add.at(uses, (question, session), 1.0)
    weight: NDArray[np.float32] = np.asarray(1.0 + (draws - 1.0) @ uses, dtype=np.float32)
    return Replicates(weight, sessions.num_turns.astype(np.float64))


def interval(values: FloatArray, level: float = 0.95) -> Interval:
    """Central interval of bootstrap values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Measured:
    """One policy at one budget: figures and their bootstrap values."""

    quality: float  # mean a turn; unserved turns count 0
    quality_ci: Interval
    cost_usd_per_turn: float
    cost_ci: Interval
    bankruptcy_rate: float  # share of sessions
    bankruptcy_ci: Interval
    model_share: FloatArray  # [K] of the turns that were decided, bankrupting ones included
    quality_replicates: FloatArray  # [R]


def measure(result: ReplayResult, sessions: Sessions, replicates: Replicates) -> Measured:
    """Summarise a replay."""
    first = sessions.offsets[:-1]
    turns, ones = replicates.num_turns, np.ones(sessions.num_sessions)
    quality = np.add.reduceat(result.quality.astype(np.float64), first)
    cost_usd = np.add.reduceat(to_usd(result.cost_nusd), first)
    bankrupt = result.bankrupt.astype(np.float64)
    quality_replicates = replicates.ratio(quality, turns)
    served = result.action[result.action != UNSERVED]
    share = np.bincount(served, minlength=len(sessions.catalog)) / max(1, len(served))
    return Measured(
        quality=float(quality.sum() / turns.sum()),
        quality_ci=interval(quality_replicates),
        cost_usd_per_turn=float(cost_usd.sum() / turns.sum()),
        cost_ci=interval(replicates.ratio(cost_usd, turns)),
        bankruptcy_rate=float(bankrupt.mean()),
        bankruptcy_ci=interval(np.clip(replicates.ratio(bankrupt, ones), 0, 1)),  # first-order weights may overshoot
        model_share=share,
        quality_replicates=quality_replicates,
    )


def share_by_remaining(
    result: ReplayResult, num_models: int, reference_cost_usd: float, edges: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """[B, K] share of each model's turns and [B] turns by remaining budget, bins `edges` [B + 1]."""
    taken = result.action != UNSERVED
    multiple = to_usd(result.remaining_nusd[taken]) / reference_cost_usd
    place = np.digitize(multiple, edges) - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    counts = np.zeros((len(edges) - 1, num_models))
    np.add.at(counts, (place[inside], result.action[taken][inside]), 1)
    totals = counts.sum(axis=1)
    return counts / np.maximum(totals, 1)[:, None], totals
