"""Off-policy estimators: what another policy would have earned, from a log of one action a turn and its propensity.

Notation, for turn t of session i: w_it product of target / propensity over the turns up to t; r_it the reward (quality
of a served turn, 0 from bankruptcy on); g_it the judging factor (1 / share judged, 0 where not judged, 1 where the
reward is sure); U = number of turns, or of sessions. Each estimator is a `Sums`: a ratio of sums over turns, of which
value, influence function and bootstrap all follow.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.ope_log import LoggedPaths, Weights

MIN_AT_POSITION = 20  # sessions: of fewer a ratio of sums is hardly less biased than one turn
MAX_SHARE = 0.9  # of a stratum's weight, where a turn is left out of it: one that is nearly all of it


@dataclass(frozen=True)
class Sums:
    """sum_b count_b * (sum of top in b) / (sum of bottom in b), over the sum of unit.

    Every array is [N], of turns; stratum b counts from 0, count_b is its number of turns.
    """

    top: FloatArray
    bottom: FloatArray
    stratum: IntArray
    unit: FloatArray

    def value(self) -> float:
        return float(self.replicate(np.ones((1, len(self.top))))[0])

    def replicate(self, weight: NDArray[np.floating]) -> FloatArray:
        """[R] values when turns count with weight [R, N]; NaN where a replicate drew no weight in a stratum."""
        by_stratum = np.eye(int(self.stratum.max()) + 1)[self.stratum]  # [N, B]
        top, bottom = weight @ (self.top[:, None] * by_stratum), weight @ (self.bottom[:, None] * by_stratum)
        count = weight @ by_stratum
        part = np.divide(count * top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        part[count == 0] = 0.0
        return np.asarray(part.sum(axis=1) / (weight @ self.unit))

    def influence(self, left_out: bool = False) -> FloatArray:
        """[N] derivative of the value by the weight of each turn; adds up to 0.

        left_out: against the mean of the stratum without the turn, as the jackknife has it. A turn of large weight
        pulls that mean to itself, and would look closer to it than it is.
        """
        count, top, bottom = (
            np.bincount(self.stratum, weights=values) for values in (np.ones(len(self.top)), self.top, self.bottom)
        )
        scale, mean = (np.divide(a, bottom, out=np.zeros(len(bottom)), where=bottom > 0) for a in (count, top))
        b = self.stratum
        change = scale[b] * (self.top - mean[b] * self.bottom)
        if left_out:
            share = np.divide(self.bottom, bottom[b], out=np.zeros(len(b)), where=bottom[b] > 0)
            change = change / (1 - np.minimum(share, MAX_SHARE))
        return np.asarray((change + mean[b] - self.value() * self.unit) / self.unit.sum())


def units(sessions: Sessions, per: str) -> FloatArray:
    """[N] whose sum is the number of turns or of sessions."""
    num_turns = np.repeat(sessions.num_turns, sessions.num_turns)
    return 1.0 / num_turns if per == "session" else np.ones(len(num_turns))


def per_decision(paths: LoggedPaths, weights: Weights, unit: FloatArray) -> Sums:
    """PDIS: (1 / U) sum_it w_it g_it r_it. Unbiased.

    Source: Precup, Sutton, Singh, Eligibility traces for off-policy policy evaluation, ICML 2000.
    """
    top = weights.upto * weights.judging * paths.reward
    return Sums(top, np.ones(len(top)), np.zeros(len(top), dtype=np.int64), unit)


def weighted_per_decision(paths: LoggedPaths, weights: Weights, unit: FloatArray) -> Sums:
    """Self-normalised PDIS: (1 / U) sum_t n_t (sum_i w_it g_it r_it) / (sum_i w_it g_it), n_t sessions with a turn t.

    Its bias goes to 0 as 1 / n_t; it stays in the range of the rewards, and varies less. See strata for late turns.
    Source: Precup, Sutton, Singh (2000), with the weights of sessions that have a turn t.
    """
    mass = weights.upto * weights.judging
    return Sums(mass * paths.reward, mass, strata(paths.sessions), unit)


def strata(sessions: Sessions) -> IntArray:
    """[N] position of the turn; those from the first one on that fewer than MIN_AT_POSITION sessions reach are one."""
    reached = np.bincount(sessions.turn)
    return np.minimum(sessions.turn, int(np.sum(reached >= MIN_AT_POSITION)))


def doubly_robust(paths: LoggedPaths, weights: Weights, unit: FloatArray, model: "Model") -> Sums:
    """(1 / U) sum_it w_i,t-1 V(s_it) + w_it (m_it + g_it (r_it - m_it) - Q(s_it, a_it)), over decided turns.

    Unbiased whatever the model, which was fitted without the turn's group and session (see ope_fqe); the closer Q is,
    the less it varies.
    Source: Jiang, Li, Doubly robust off-policy value evaluation for reinforcement learning, ICML 2016.
    """
    reward = model.reward + weights.judging * (paths.reward - model.reward)
    top = weights.before * model.value + weights.upto * (reward - model.q_value)
    return Sums(np.where(paths.decided, top, 0.0), np.ones(len(top)), np.zeros(len(top), dtype=np.int64), unit)


@dataclass(frozen=True)
class Model:
    """What fitted Q evaluation expects of each turn, [N]; cross-fitted."""

    reward: FloatArray  # of the logged action
    q_value: FloatArray  # of the logged action, and of the target from the next turn on
    value: FloatArray  # of the target from this turn on


def mean_weight(weights: Weights, sessions: Sessions) -> Sums:
    """Mean over sessions of the whole session's weight: 1 where the log can say something of the target."""
    last = np.zeros(len(weights.upto))
    last[sessions.offsets[1:] - 1] = 1.0
    return Sums(weights.upto * last, np.ones(len(last)), np.zeros(len(last), dtype=np.int64), last)


def effective_sample_size(weights: Weights, sessions: Sessions) -> float:
    """(sum w)^2 / sum w^2 of sessions (w: mean weight of its turns) or of groups (w: sum), whichever is smaller.

    Source: Kish, Survey Sampling, 1965.
    """
    mass = weights.upto * weights.judging
    of_session = np.add.reduceat(mass, sessions.offsets[:-1]) / sessions.num_turns
    group = np.unique(sessions.group_id, return_inverse=True)[1].reshape(-1)
    return min(kish(of_session), kish(np.bincount(group, weights=mass).astype(np.float64)))


def kish(weight: FloatArray) -> float:
    """0 where there is no weight at all."""
    squares = float(np.sum(weight**2))
    return float(np.sum(weight)) ** 2 / squares if squares > 0 else 0.0
