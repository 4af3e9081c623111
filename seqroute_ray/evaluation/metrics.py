"""Figures of a replay, with intervals that resample questions.

Sessions reuse questions, so resampling sessions alone gives intervals several times too narrow. Each bootstrap
replicate draws the questions of every source and the sessions, both with replacement; a turn counts with the product
of the two draws (the pigeonhole bootstrap: Owen, The pigeonhole bootstrap, 2007). All policies share the replicates,
so differences between two of them are paired. benchmarks/intervals.py holds this against replaying anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult

Interval = tuple[float, float]


@dataclass(frozen=True)
class Replicates:
    """Bootstrap weights of turns, shared by all policies of a report."""

    weight: NDArray[np.float32]  # [R, N]
    session_share: NDArray[np.float32]  # [N] 1 / turns of the session: a session's turns add up to 1

    def means(self, per_turn: NDArray[Any]) -> FloatArray:
        """[R, C] weighted means of C figures a turn [N, C]."""
        return self._ratio(per_turn, self._turns)

    def rate(self, per_turn: NDArray[Any]) -> FloatArray:
        """[R] weighted counts of an event [N] for each session."""
        return self._ratio(per_turn[:, None], self._sessions)[:, 0]

    @cached_property
    def _turns(self) -> FloatArray:
        return np.asarray(self.weight.sum(axis=1))

    @cached_property
    def _sessions(self) -> FloatArray:
        return np.asarray(self.weight @ self.session_share)

    def _ratio(self, per_turn: NDArray[Any], units: FloatArray) -> FloatArray:
        """[R, C]; NaN in a replicate that drew none of a handful of turns."""
        counted = self.weight @ per_turn.astype(np.float32)
        bottom = np.broadcast_to(units[:, None], counted.shape)
        ratio: FloatArray = np.divide(counted, bottom, out=np.full(counted.shape, np.nan), where=bottom > 0)
        return ratio


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
        draws[:, members] = _draw(rng, len(members), num_replicates)
    session = np.repeat(np.arange(sessions.num_sessions), sessions.num_turns)
    weight = draws[:, question] * _draw(rng, sessions.num_sessions, num_replicates)[:, session]
    return Replicates(weight, (1 / sessions.num_turns[session]).astype(np.float32))


def _draw(rng: np.random.Generator, num: int, num_replicates: int) -> NDArray[np.float32]:
    """[R, num] how often each of `num` is drawn, with replacement."""
    return rng.multinomial(num, np.full(num, 1 / num), size=num_replicates).astype(np.float32)


def interval(values: FloatArray, level: float = 0.95) -> Interval:
    """Central interval of bootstrap values; NaN values do not count."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
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
    bankruptcy_error: float  # standard error of the rate
    model_share: FloatArray  # [K] of the turns that were decided, bankrupting ones included
    quality_replicates: FloatArray  # [R]
    cost_replicates: FloatArray  # [R]


def measure(result: ReplayResult, sessions: Sessions, replicates: Replicates) -> Measured:
    """Summarise a replay."""
    cost_usd = to_usd(result.cost_nusd)
    bankruptcies = replicates.rate(result.bankrupting)
    quality_replicates, cost_replicates = replicates.means(np.stack([result.quality, cost_usd], axis=1)).T
    decided = result.action[result.action != UNSERVED]
    share = np.bincount(decided, minlength=len(sessions.catalog)) / max(1, len(decided))
    return Measured(
        quality=float(result.quality.mean(dtype=np.float64)),
        quality_ci=interval(quality_replicates),
        cost_usd_per_turn=float(cost_usd.mean()),
        cost_ci=interval(cost_replicates),
        bankruptcy_rate=float(result.bankrupt.mean()),
        bankruptcy_ci=interval(bankruptcies),
        bankruptcy_error=float(np.nanstd(bankruptcies)),
        model_share=share,
        quality_replicates=quality_replicates,
        cost_replicates=cost_replicates,
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
