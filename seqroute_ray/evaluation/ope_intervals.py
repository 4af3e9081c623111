"""Intervals of off-policy estimates, for turns that share sessions and groups (a question that sessions reuse).

Cluster-robust, with Student's quantiles. The bootstrap that replays use (metrics.py: questions and sessions both drawn)
counts what sessions and questions share twice, and its intervals are a fifth wider than they must be here; and where
groups are sessions it would draw the same thing twice. benchmarks/ope.py holds both against a known truth.
"""

from dataclasses import dataclass

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.sessions import Sessions

Interval = tuple[float, float]
Z_975 = 1.959964  # of the normal distribution


@dataclass(frozen=True)
class Spread:
    """How far an estimate may be off."""

    error: float  # standard error
    num_effective: float  # clusters that the error comes from: as many as if all counted the same

    def interval(self, value: float) -> Interval:
        """95 %, by Student's distribution with num_effective - 1 degrees of freedom."""
        half = t_975(self.num_effective - 1) * self.error
        return value - half, value + half


def spread(influence: FloatArray, sessions: Sessions) -> Spread:
    """Of an estimate with this influence [N]: robust to any dependence inside sessions and inside groups.

    V = V_session + V_group - V_both, each n / (n - 1) sum over clusters of (sum of influence in it)^2; the largest of
    V, V_session and V_group. Effective clusters: (sum q)^2 / sum q^2 over these squares q, of sessions or groups,
    whichever are fewer: where a few large weights carry the error, it is known as badly as from so few draws.
    Source: Cameron, Gelbach, Miller, Robust inference with multiway clustering, 2011.
    """
    session = np.repeat(np.arange(sessions.num_sessions), sessions.num_turns)
    group = np.unique(sessions.group_id, return_inverse=True)[1].reshape(-1)
    both = np.unique(session * (int(group.max()) + 1) + group, return_inverse=True)[1].reshape(-1)
    of_session, of_group, of_both = (np.bincount(key, weights=influence) ** 2 for key in (session, group, both))
    variances = [float(q.sum()) * len(q) / max(len(q) - 1, 1) for q in (of_session, of_group, of_both)]
    variance = max(variances[0] + variances[1] - variances[2], *variances[:2])
    return Spread(float(np.sqrt(variance)), min(_num_effective(of_session), _num_effective(of_group)))


def _num_effective(squares: IntArray | FloatArray) -> float:
    """All clusters where none says anything."""
    total = float(np.sum(squares**2))
    return float(np.sum(squares)) ** 2 / total if total > 0 else float(len(squares))


def t_975(degrees: float) -> float:
    """The 97.5 % quantile of Student's distribution: Fisher's expansion, right to 0.005 from 5 degrees on."""
    z, n = Z_975, degrees
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
