"""Fitted Q evaluation: a linear model of what a policy earns from a turn on, cross-fitted two ways.

A turn is judged by a model that saw no turn of its group and none of its session: with K folds of groups and K of
sessions, one model for each pair of folds that occurs (multiway cross-fitting: Chiang, Kato, Ma, Sasaki, Multiway
cluster robust double/debiased machine learning, 2022). Where sessions are groups these are K models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.fitting import fold_of
from seqroute_ray.core.mdp import StateLayout, TurnFeatures, after_state
from seqroute_ray.core.ridge import sigmoid
from seqroute_ray.evaluation.ope_estimators import Model
from seqroute_ray.evaluation.ope_log import LoggedPaths, Weights

NUM_FOLDS = 5
PENALTY = 1.0  # of the ridge, on features of about unit size
SPREAD_TO_LOGISTIC = 0.33  # a 95 % quantile lies about 1.64 deviations up; a logistic's scale is 0.55 of a deviation


def action_features(layout: StateLayout, turns: TurnFeatures, remaining_usd: FloatArray, turn: IntArray) -> FloatArray:
    """[N, K, F] of taking each model: what is expected of it, what it would leave, and the state."""
    estimates, num_models = turns.estimates, layout.num_models
    table = layout.expected_turns_left
    left = np.asarray(table)[np.minimum(turn, len(table) - 1)]
    after = after_state(layout, estimates, np.maximum(remaining_usd, 0.0), left)
    log_cost, log_high = (np.log(np.maximum(c, 1e-12)) for c in (estimates.cost_usd, estimates.cost_high_usd))
    slack = np.log(np.maximum(remaining_usd, 1e-12))[:, None] - log_cost
    fits = sigmoid(slack / (SPREAD_TO_LOGISTIC * np.maximum(log_high - log_cost, 0.1)))
    own = [estimates.quality * fits, fits, after[..., 1], after[..., 3], after[..., 4]]
    later = np.maximum(left - 1, 0.0)[:, None] / 4
    own += [later * fits, later * after[..., 4], later * estimates.quality.mean(axis=1, keepdims=True) * fits]
    which = np.broadcast_to(np.eye(num_models), (len(turn), num_models, num_models))
    history = np.broadcast_to(turns.history[:, None], (len(turn), num_models, turns.history.shape[1]))
    parts = [np.broadcast_to(x, fits.shape)[..., None] for x in own]
    every = np.concatenate([which, *parts, history, later[..., None] * history], axis=2)
    return np.asarray(every, dtype=np.float64)


@dataclass(frozen=True)
class Moments:
    """Sums over turns of which a fit is made."""

    gram: FloatArray  # [F, F] of every turn
    known: FloatArray  # [F, F] of the turns whose reward is known
    follow: FloatArray  # [F, F] features of the turn by those expected of the next one
    reward: FloatArray  # [F] features by reward, where it is known

    @classmethod
    def of(cls, taken: FloatArray, following: FloatArray, reward: FloatArray, known: BoolArray) -> "Moments":
        """taken, following: [n, F]; reward, known: [n]."""
        judged = taken[known]
        return cls(taken.T @ taken, judged.T @ judged, taken.T @ following, judged.T @ reward[known])

    def fit(self, num_turns: int) -> tuple[FloatArray, FloatArray]:
        """[F] weights of the reward and of the Q-value; a reward that is not known is what the first says it is."""
        ridge = PENALTY * np.eye(len(self.reward))
        of_reward = np.linalg.solve(self.known + ridge, self.reward)
        filled = self.reward + (self.gram - self.known) @ of_reward
        now, then = np.split(np.linalg.solve(self.gram + ridge, np.c_[filled, self.follow]), [1], axis=1)
        weights = now[:, 0]
        for _ in range(num_turns - 1):
            weights = now[:, 0] + then @ weights
        return of_reward, weights


def fitted_q(paths: LoggedPaths, weights: Weights, features: FloatArray, num_folds: int = NUM_FOLDS) -> Model:
    """Fit by as many steps of dynamic programming as sessions have turns. features: [N, K, F]."""
    sessions, num_rows = paths.sessions, len(features)
    taken = features[np.arange(num_rows), sessions.action]  # [N, F]
    expected = np.einsum("nk,nkf->nf", weights.target, features)
    following = np.where(_goes_on(paths)[:, None], np.roll(expected, -1, axis=0), 0.0)
    groups = fold_of(sessions.group_id, num_folds)
    own = np.repeat(fold_of(sessions.session_id, num_folds), sessions.num_turns)
    cells = {
        (int(pair) // num_folds, int(pair) % num_folds): np.flatnonzero(groups * num_folds + own == pair)
        for pair in np.unique(groups * num_folds + own)
    }
    moments = {}
    for pair, members in cells.items():
        seen = members[paths.decided[members]]
        moments[pair] = Moments.of(taken[seen], following[seen], paths.reward[seen], paths.known[seen])
    out = Model(*np.zeros((3, num_rows)))
    for pair, members in cells.items():
        reward, value = _unseen(moments, pair, features.shape[2]).fit(int(sessions.num_turns.max()))
        out.reward[members], out.q_value[members] = taken[members] @ reward, taken[members] @ value
        out.value[members] = expected[members] @ value
    return out


def _unseen(moments: Mapping[tuple[int, int], Moments], pair: tuple[int, int], num_features: int) -> Moments:
    """Of all that is neither in the pair's fold of groups nor in its fold of sessions."""
    shape = (num_features, num_features)
    total = Moments(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(num_features))
    for other, part in moments.items():
        if other[0] != pair[0] and other[1] != pair[1]:
            total = Moments(*(getattr(total, f.name) + getattr(part, f.name) for f in fields(Moments)))
    return total


def _goes_on(paths: LoggedPaths) -> BoolArray:
    """[N] served turns that another turn follows."""
    last = np.zeros(len(paths.served), dtype=np.bool_)
    last[paths.sessions.offsets[1:] - 1] = True
    return paths.served & ~last
