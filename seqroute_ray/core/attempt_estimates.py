"""What an attempt will bring: chance of success, cost of its next turn and of all that is left of it.

For each model a ridge regression on what is known at that point: the type of task, turns taken and what they were, the
last turn's cost, and which other models failed the task. History tells here: a rejected answer, an invalid action or a
failure of another model moves the chance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.attempts import ANSWER, INVALID, Attempts, TaskStates
from seqroute_ray.core.fitting import fold_of
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.ridge import logistic_ridge, ridge, sigmoid

PENALTY = 1.0  # on the summed loss; features are of order 1
NUM_FOLDS = 5  # of tasks, for cross-fitting
MIN_COST_USD = 1e-9


@dataclass(frozen=True)
class AttemptEstimates:
    """Of N tasks, K models and each number of turns taken [T]."""

    success_logit: NDArray[np.float32]  # [N, K, T] chance of success of the attempt, when no other model failed
    failed_logit: NDArray[np.float32]  # [N, K, K] added for each other model that failed the task: [n, model, failed]
    next_usd: NDArray[np.float32]  # [N, K, T] of the next turn
    rest_usd: NDArray[np.float32]  # [N, K, T] of all turns that are left of the attempt, the next one included

    def at(self, states: TaskStates) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Chance of success, cost of the next turn and of the rest, each [n, K]: going on, or a first turn."""
        rows, models = states.task[:, None], np.arange(states.tried.shape[1])
        under_way = models == states.model[:, None]
        turn = np.where(under_way, states.turn[:, None], 0)
        failed = states.tried & ~under_way
        shift = np.einsum("nkf,nf->nk", self.failed_logit[states.task], failed.astype(np.float32))
        chance = sigmoid(self.success_logit[rows, models, turn] + shift)
        return np.asarray(chance), self.next_usd[rows, models, turn], self.rest_usd[rows, models, turn]


def estimate_attempts(attempts: Attempts, fit: BoolArray) -> AttemptEstimates:
    """Estimates for all tasks, from the tasks `fit` [N]; those themselves get theirs from folds that left them out."""
    fold = fold_of(attempts.task_id, NUM_FOLDS)
    estimates = _fit_predict(attempts, fit)
    for held_out in range(NUM_FOLDS):
        rows = fit & (fold == held_out)
        part = _fit_predict(attempts, fit & (fold != held_out))
        for name, values in vars(estimates).items():
            values[rows] = getattr(part, name)[rows]
    return estimates


def _fit_predict(attempts: Attempts, fit: BoolArray) -> AttemptEstimates:
    columns = [_model(attempts, fit, k) for k in range(len(attempts.catalog))]
    return AttemptEstimates(*(np.stack(parts, axis=1).astype(np.float32) for parts in zip(*columns, strict=True)))


def _model(attempts: Attempts, fit: BoolArray, model: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Of one model: [N, T], [N, K], [N, T], [N, T]; see AttemptEstimates."""
    num_tasks, num_models, num_turns = attempts.cost_nusd.shape
    cost_usd = np.maximum(to_usd(attempts.cost_nusd[:, model]), MIN_COST_USD)
    known = features(attempts, model, cost_usd)
    taken = np.arange(num_turns) < attempts.num_turns[:, model, None]
    task, turn = np.nonzero(taken & fit[:, None])
    x = known[task, turn]
    failed = _failed(attempts, model)
    # Each row twice: with nothing known of the other models, and with their failures.
    both = np.concatenate(
        [np.concatenate([x, np.zeros((len(x), num_models))], axis=1), np.concatenate([x, failed[task]], axis=1)]
    )
    success = np.tile(attempts.success[task, model].astype(np.float64), 2)
    weights = logistic_ridge(both, success, np.full(both.shape[1], 2 * PENALTY))
    rest_usd = np.cumsum((cost_usd * taken)[:, ::-1], axis=1)[:, ::-1]
    costs = [_cost(known, x, values[task, turn]) for values in (cost_usd, rest_usd)]
    width = x.shape[1]
    return known @ weights[:width], np.broadcast_to(weights[width:], (num_tasks, num_models)), costs[0], costs[1]


def _cost(known: FloatArray, x: FloatArray, cost_usd: FloatArray) -> FloatArray:
    """[N, T] mean cost by log-linear regression of cost_usd [M] on x [M, F]."""
    y = np.log(np.maximum(cost_usd, MIN_COST_USD))
    weights = ridge(x, y, np.full(x.shape[1], PENALTY))
    return np.asarray(np.exp(known @ weights) * np.mean(np.exp(y - x @ weights)))


def _failed(attempts: Attempts, model: int) -> FloatArray:
    """[N, K] which other models failed the task."""
    failed = ~attempts.success
    failed[:, model] = False
    return failed.astype(np.float64)


def features(attempts: Attempts, model: int, cost_usd: FloatArray) -> FloatArray:
    """[N, T, F] what is known of an attempt of one model before each of its turns. cost_usd: [N, T] of the turns."""
    num_turns = cost_usd.shape[1]
    types = np.unique(attempts.task_type)
    of_type = (attempts.task_type[:, None] == types).astype(np.float64)[:, None, :].repeat(num_turns, axis=1)
    later = (np.arange(num_turns) > 0).astype(np.float64)[None, :, None]
    at_turn = np.broadcast_to(np.eye(num_turns), (len(attempts), num_turns, num_turns))
    kind = attempts.kind[:, model]
    log_cost = np.log(cost_usd)
    # Relative to the model's typical turn, so that 0 says nothing.
    relative = log_cost - log_cost[kind > 0].mean() if (kind > 0).any() else log_cost
    columns = [_before(kind == ANSWER), _before(kind == INVALID), _shifted(relative)]
    return np.concatenate([of_type, of_type * later, at_turn, np.stack(columns, axis=2)], axis=2)


def _before(event: BoolArray) -> FloatArray:
    """[N, T] how often an event [N, T] happened in earlier turns."""
    counts = np.cumsum(event, axis=1)
    return np.concatenate([np.zeros((len(counts), 1)), counts[:, :-1]], axis=1)


def _shifted(values: FloatArray) -> FloatArray:
    """[N, T] the value at the turn before; 0 at the first."""
    return np.concatenate([np.zeros((len(values), 1)), values[:, :-1]], axis=1)


def task_folds(attempts: Attempts, num_folds: int) -> IntArray:
    """[N] outer fold of each task, by a hash of its id other than the one of cross-fitting."""
    return fold_of(np.char.add("outer/", attempts.task_id), num_folds)
