"""The decision problem of attempted tasks: state, relabeling under random budgets, and the learned policy.

State   context: remaining money, share of models untried, the best chance among them; and for each model: its chance
        of success, where its attempt stands, what the next turn and the whole attempt would take of the money left,
        and the best chance that another model would still have after it.
Reward  1 when an attempt ends in success, else 0; a turn that does not fit ends the task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.attempt_estimates import AttemptEstimates
from seqroute_ray.core.attempts import NONE, Attempts, TaskStates, step
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import QNetwork
from seqroute_ray.core.ridge import sigmoid

NUM_CONTEXT, NUM_AFTER = 5, 7  # entries of a state; see encode_task_state
FIT_BLUR = 0.3  # in logarithms: how sharply a predicted cost fits into what remains
LONGEST = 4.0  # logarithms of money are clipped here, in both directions
KEEP_ON = (0.6, 0.9, 1.0)  # chances of going on with an attempt, one drawn for each replay
THRIFT = (0.0, 1.0, 3.0)  # how much a replay prefers models of much chance per dollar; 0: not at all


def encode_task_state(
    estimates: AttemptEstimates, states: TaskStates, reference_usd: float
) -> tuple[NDArray[np.float32], FloatArray]:
    """The state [n, NUM_CONTEXT + K + K * NUM_AFTER] as core.policy.QNetwork reads it; the next turn's cost [n, K]."""
    chance, next_usd, rest_usd = estimates.at(states)
    remaining = np.maximum(to_usd(states.remaining_nusd), 1e-9)[:, None]
    untried, under_way = ~states.tried, np.arange(chance.shape[1]) == states.model[:, None]
    open_chance = np.where(untried, chance, 0.0)
    context = (
        np.log(remaining[:, 0] / reference_usd) / 2,
        np.minimum(remaining[:, 0] / reference_usd, 2),
        untried.mean(axis=1),
        open_chance.max(axis=1),
        _best_other(open_chance, rest_usd, remaining),
    )
    left = np.maximum(remaining - rest_usd, 1e-9)
    after = (
        chance,
        under_way,
        np.where(under_way, states.turn[:, None], 0) / 5,
        _log_share(remaining, next_usd),
        _log_share(remaining, rest_usd),
        _log_share(left, rest_usd),
        np.stack(
            [_best_other(_without(open_chance, k), rest_usd, left[:, k : k + 1]) for k in range(chance.shape[1])], 1
        ),
    )
    flat = np.stack(after, axis=2).reshape(len(chance), chance.shape[1] * NUM_AFTER)
    return np.concatenate([np.stack(context, axis=1), chance, flat], axis=1, dtype=np.float32), next_usd


def _log_share(money: FloatArray, cost: FloatArray) -> FloatArray:
    return np.clip(np.log(money / np.maximum(cost, 1e-9)), -LONGEST, LONGEST) / 2


def _without(values: FloatArray, column: int) -> FloatArray:
    return np.where(np.arange(values.shape[1]) == column, 0.0, values)


def _best_other(chance: FloatArray, rest_usd: FloatArray, money: FloatArray) -> FloatArray:
    """[n] the best chance [n, K] among attempts whose cost [n, K] fits into the money [n, 1], blurred."""
    fits = sigmoid(np.log(money / np.maximum(rest_usd, 1e-9)) / FIT_BLUR)
    return np.asarray((chance * fits).max(axis=1))


@dataclass(frozen=True)
class TaskTransitions:
    """M turns of replayed tasks."""

    states: TaskStates  # [M]
    following: TaskStates  # [M] after the turn
    action: IntArray  # [M]
    reward: NDArray[np.float32]  # [M]
    terminated: BoolArray  # [M]

    def __len__(self) -> int:
        return len(self.action)

    @classmethod
    def concatenate(cls, parts: Sequence["TaskTransitions"]) -> "TaskTransitions":
        def states(name: str) -> TaskStates:
            columns = [vars(getattr(part, name)).values() for part in parts]
            return TaskStates(*(np.concatenate(values) for values in zip(*columns, strict=True)))

        rest = [np.concatenate([getattr(part, name) for part in parts]) for name in ("action", "reward", "terminated")]
        return cls(states("states"), states("following"), *rest)


def relabel_attempts(
    attempts: Attempts,
    estimates: AttemptEstimates,
    tasks: IntArray,
    budget_range_usd: tuple[float, float],
    num_replays: int,
    seed: int,
) -> TaskTransitions:
    """Replay each task num_replays times: random models, random endurance, a log-uniform budget it never had.

    Each replay draws its own thrift: in a large pool uniformly random models hardly ever live through a small budget.
    """
    rng = np.random.default_rng(seed)
    task = np.repeat(tasks, num_replays)
    low, high = np.log(budget_range_usd)
    budget_usd = np.exp(rng.uniform(low, high, size=len(task)))
    keep_on, thrift = rng.choice(KEEP_ON, size=len(task)), rng.choice(THRIFT, size=len(task))
    states, parts = TaskStates.begin(task, len(attempts.catalog), to_nusd(budget_usd)), []
    while len(states.task):
        switch = (states.model == NONE) | ((rng.random(len(keep_on)) >= keep_on) & ~states.tried.all(axis=1))
        chance, _, rest_usd = estimates.at(states)
        preference = thrift[:, None] * np.log(chance / rest_usd) + rng.gumbel(size=chance.shape)  # a softmax's draw
        drawn = np.where(states.tried, -np.inf, preference).argmax(axis=1)
        action = np.where(switch, drawn, states.model)
        done = step(attempts, states, action)
        over = done.solved | done.bankrupt | ~done.states.allowed.any(axis=1)
        parts.append(TaskTransitions(states, done.states, action, done.solved.astype(np.float32), over))
        states, keep_on, thrift = done.states.take(~over), keep_on[~over], thrift[~over]
    return TaskTransitions.concatenate(parts)


@dataclass(frozen=True)
class AttemptQPolicy:
    """lambda-greedy over a Q-network, among the model under way and the untried ones."""

    network: QNetwork
    estimates: AttemptEstimates
    reference_usd: float
    lambda_per_usd: float = 0.0

    def act(self, states: TaskStates) -> IntArray:
        state, next_usd = encode_task_state(self.estimates, states, self.reference_usd)
        worth = self.network.values(state).quality - self.lambda_per_usd * next_usd
        return np.asarray(np.argmax(np.where(states.allowed, worth, -np.inf), axis=1))
