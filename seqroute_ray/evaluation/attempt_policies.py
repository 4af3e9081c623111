"""Baselines for tasks that are attempted: cascades, rules on the estimates, and the clairvoyant oracle."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.attempt_estimates import AttemptEstimates
from seqroute_ray.core.attempts import NONE, Attempts, TaskStates
from seqroute_ray.core.money import to_usd


@dataclass(frozen=True)
class Cascade:
    """Models in a fixed order, each dropped after a number of turns; one model with turns enough is it alone."""

    order: tuple[int, ...]
    stops: tuple[int, ...]  # turns of each

    def act(self, states: TaskStates) -> IntArray:
        action = np.full(len(states.task), NONE)
        for model, stop in zip(reversed(self.order), reversed(self.stops), strict=True):
            under_way = (states.model == model) & (states.turn < stop)
            action = np.where(under_way | ~states.tried[:, model], model, action)
        return action


def cascades(models: Sequence[int], stops: Sequence[int], max_models: int = 3) -> list[Cascade]:
    """Every order of up to max_models of the models, with every stopping rule."""
    return [
        Cascade(order, turns)
        for num_models in range(1, min(max_models, len(models)) + 1)
        for order in permutations(models, num_models)
        for turns in product(stops, repeat=num_models)
    ]


@dataclass(frozen=True)
class RandomAttempts:
    """A uniformly random untried model, each to its end."""

    seed: int = 0

    def act(self, states: TaskStates) -> IntArray:
        rng = np.random.default_rng([self.seed, *states.task.shape])
        drawn = np.where(states.tried, -1.0, rng.random(states.tried.shape)).argmax(axis=1)
        return np.where(states.model == NONE, drawn, states.model)


@dataclass(frozen=True)
class DearestThatFits:
    """The dearest untried model whose mean attempt fits into `slack` times what remains, else the cheapest."""

    mean_usd: FloatArray  # [K] of an attempt
    slack: float

    def act(self, states: TaskStates) -> IntArray:
        limit = self.slack * to_usd(states.remaining_nusd)[:, None]
        fits = ~states.tried & (self.mean_usd <= limit)
        dearest = np.where(fits, self.mean_usd, -np.inf).argmax(axis=1)
        cheapest = np.where(states.tried, np.inf, self.mean_usd).argmin(axis=1)
        return np.where(states.model == NONE, np.where(fits.any(axis=1), dearest, cheapest), states.model)


@dataclass(frozen=True)
class PricedChance:
    """argmax chance - price * cost of the attempt: greedy on the estimates (MTRouter's rule) at price 0."""

    estimates: AttemptEstimates
    price_per_usd: float

    def act(self, states: TaskStates) -> IntArray:
        chance, _, rest_usd = self.estimates.at(states)
        return _best(chance - self.price_per_usd * rest_usd, rest_usd, states)


@dataclass(frozen=True)
class ChancePerDollar:
    """argmax chance / cost of the attempt, among those that fit: optimal search when the money suffices for all."""

    estimates: AttemptEstimates

    def act(self, states: TaskStates) -> IntArray:
        chance, _, rest_usd = self.estimates.at(states)
        return _best(chance / rest_usd, rest_usd, states)


@dataclass(frozen=True)
class LargeWhereHard:
    """The large model first where it is likelier to succeed by the threshold and fits, else the small; then the other.

    Boundary-guided routing's choice (arXiv:2602.21227) by estimates; First-Large at a threshold of -1.
    """

    estimates: AttemptEstimates
    small: int
    large: int
    threshold: float

    def act(self, states: TaskStates) -> IntArray:
        chance, _, rest_usd = self.estimates.at(states)
        hard = chance[:, self.large] - chance[:, self.small] >= self.threshold
        fits = rest_usd[:, self.large] <= to_usd(states.remaining_nusd)
        first = np.where(hard & fits, self.large, self.small)
        rows, other = np.arange(len(first)), self.small + self.large - first
        fresh = np.where(states.tried[rows, first], np.where(states.tried[rows, other], NONE, other), first)
        return np.where(states.model == NONE, fresh, states.model)


def _best(worth: FloatArray, rest_usd: FloatArray, states: TaskStates) -> IntArray:
    """The allowed model of the most worth among those whose attempt fits; among all allowed where none fits."""
    fits = states.allowed & (rest_usd <= to_usd(states.remaining_nusd)[:, None])
    among = np.where(fits.any(axis=1, keepdims=True), fits, states.allowed)
    return np.asarray(np.where(among, worth, -np.inf).argmax(axis=1))


def oracle_solves(attempts: Attempts, budget_nusd: int) -> tuple[BoolArray, IntArray]:
    """[N] tasks that some model solves within the budget, and what the cheapest such attempt costs (0 where none)."""
    total = attempts.cost_nusd.sum(axis=2)
    possible = attempts.success & (total <= budget_nusd)
    cheapest = np.where(possible, total, np.iinfo(np.int64).max).min(axis=1)
    return possible.any(axis=1), np.where(possible.any(axis=1), cheapest, 0)
