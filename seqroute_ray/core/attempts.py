"""Tasks that are attempted: go on with a model, or drop it and begin anew with another, under a strict budget.

Success is seen when an attempt ends; a new attempt starts from nothing; no model is tried twice on a task. So recorded
attempts of every model on every task replay any such policy exactly: turns of different models are never spliced.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, IntArray
from seqroute_ray.core.catalog import Catalog

NONE = -1  # no attempt under way; as an action: give up
TOOL, ANSWER, INVALID = 1, 2, 3  # kinds of turns


@dataclass(frozen=True)
class Attempts:
    """Recorded attempts of K models on N tasks, at most T turns each."""

    catalog: Catalog
    task_id: NDArray[np.str_]  # [N]
    task_type: NDArray[np.str_]  # [N]
    part: NDArray[np.str_]  # [N] fit, tune or test
    num_turns: IntArray  # [N, K] at least 1
    success: BoolArray  # [N, K]
    cost_nusd: IntArray  # [N, K, T]; 0 beyond num_turns
    kind: IntArray  # [N, K, T] TOOL, ANSWER or INVALID; 0 beyond num_turns

    def __len__(self) -> int:
        return len(self.task_id)


@dataclass(frozen=True)
class TaskStates:
    """n tasks under way at once, as a policy sees them."""

    task: IntArray  # [n] rows of the attempts
    model: IntArray  # [n] of the attempt under way; NONE before the first and after a failed one
    turn: IntArray  # [n] turns taken in it
    tried: BoolArray  # [n, K] models that were begun, the present one included
    remaining_nusd: IntArray  # [n]

    @classmethod
    def begin(cls, tasks: IntArray, num_models: int, budget_nusd: IntArray) -> "TaskStates":
        shape = (len(tasks), num_models)
        nothing = np.zeros(len(tasks), dtype=np.int64)
        return cls(tasks, nothing + NONE, nothing, np.zeros(shape, dtype=np.bool_), budget_nusd.astype(np.int64))

    def take(self, rows: IntArray | BoolArray) -> "TaskStates":
        return TaskStates(*(values[rows] for values in vars(self).values()))

    @property
    def allowed(self) -> BoolArray:
        """[n, K] the model under way and the untried ones."""
        return np.asarray(~self.tried | (np.arange(self.tried.shape[1]) == self.model[:, None]))


@dataclass(frozen=True)
class Step:
    """What one more turn of each of n tasks brought."""

    states: TaskStates  # after it
    cost_nusd: IntArray  # [n] of the turn, spent or not
    bankrupt: BoolArray  # [n] the turn did not fit into what remained: not served, the task is over
    solved: BoolArray  # [n] the attempt ended in success


def step(attempts: Attempts, states: TaskStates, action: IntArray) -> Step:
    """Take one turn of model action [n] in each task: the next of its attempt, or the first of a new one."""
    rows, task = np.arange(len(action)), states.task
    turn = np.where(action == states.model, states.turn, 0)
    cost = attempts.cost_nusd[task, action, turn]
    bankrupt = cost > states.remaining_nusd
    ended = turn + 1 >= attempts.num_turns[task, action]
    tried = states.tried.copy()
    tried[rows, action] = True
    after = TaskStates(
        task,
        np.where(ended, NONE, action),
        np.where(ended, 0, turn + 1),
        tried,
        states.remaining_nusd - np.where(bankrupt, 0, cost),
    )
    return Step(after, cost, bankrupt, ended & ~bankrupt & attempts.success[task, action])


class AttemptPolicy(Protocol):
    """Chooses the next turn's model."""

    def act(self, states: TaskStates) -> IntArray:
        """[n] actions: a model that states.allowed allows, or NONE to give up."""
        ...


@dataclass(frozen=True)
class AttemptResult:
    """Outcome of one policy on n tasks."""

    solved: BoolArray  # [n]
    cost_nusd: IntArray  # [n] spent
    bankrupt: BoolArray  # [n] ended by a turn that did not fit
    num_models: IntArray  # [n] models that were begun


def replay_attempts(policy: AttemptPolicy, attempts: Attempts, tasks: IntArray, budget_nusd: int) -> AttemptResult:
    """Run all tasks to their ends under the same strict budget a task."""
    budget = np.full(len(tasks), budget_nusd)
    states = TaskStates.begin(tasks, len(attempts.catalog), budget)
    place = np.arange(len(tasks))
    solved, bankrupt = np.zeros(len(tasks), dtype=np.bool_), np.zeros(len(tasks), dtype=np.bool_)
    cost, num_models = np.zeros(len(tasks), dtype=np.int64), np.zeros(len(tasks), dtype=np.int64)
    while len(place):
        action = policy.act(states)
        going = action != NONE
        states, place, action = states.take(going), place[going], action[going]
        done = step(attempts, states, action)
        solved[place], bankrupt[place] = done.solved, done.bankrupt
        cost[place] = budget[place] - done.states.remaining_nusd
        num_models[place] = done.states.tried.sum(axis=1)
        alive = ~done.solved & ~done.bankrupt & done.states.allowed.any(axis=1)
        states, place = done.states.take(alive), place[alive]
    return AttemptResult(solved, cost, bankrupt, num_models)
