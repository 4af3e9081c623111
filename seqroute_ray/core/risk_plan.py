"""The dynamic program behind a RiskTable: what recorded answers cost, by type of task, and how long sessions last."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.sessions import Sessions, observed_outcomes

PLAN_PRICE = 15.0  # of a bankruptcy in the plan, in turns of full quality; 8 to 30 give about the same policy
NUM_MONEY_STEPS = 60
MIN_MONEY, MAX_MONEY = 1e-4, 2.0  # ends of the table, as multiples of the reference cost
MAX_TURNS = 64  # longer sessions count as so long
MIN_ANSWERS = 30  # of a model to tasks of a type; with fewer, its answers to all types stand for them


def plan_risk(sessions: Sessions, types: NDArray[np.str_], reference_cost_usd: float) -> RiskTable | None:
    """Plan on what the sessions' answers cost and were worth, by type [R]; None where the logs name no types.

    A session keeps the type of its turn, and goes on with the chance that recorded sessions did. The best model by
    quality less PLAN_PRICE times the chance of bankruptcy answers each later turn.
    """
    if types.tolist() == [UNKNOWN_TYPE]:
        return None
    quality, cost_usd = observed_outcomes(sessions)
    money_usd = np.geomspace(MIN_MONEY, MAX_MONEY, NUM_MONEY_STEPS) * reference_cost_usd
    num_turns = np.minimum(sessions.num_turns, MAX_TURNS)
    reached = np.array([np.count_nonzero(num_turns > t) for t in range(int(num_turns.max()) + 1)])
    goes_on = reached[1:] / reached[:-1]  # [T]
    num_models = quality.shape[1]
    chance = np.empty((len(goes_on), len(types), num_models, NUM_MONEY_STEPS), dtype=np.float32)
    mean_cost_usd = np.empty((len(types), num_models))
    for kind, name in enumerate(types.tolist()):
        answers = [
            _Answers.of(cost_usd[:, k], quality[:, k], sessions.source == name, money_usd) for k in range(num_models)
        ]
        chance[:, kind] = _plan(answers, goes_on)
        mean_cost_usd[kind] = [model.mean_cost_usd for model in answers]
    return RiskTable(chance, money_usd, mean_cost_usd)


@dataclass(frozen=True)
class _Answers:
    """What an answer of one model to one type of task does to G amounts of money."""

    earned: FloatArray  # [G] expected quality
    breaks: FloatArray  # [G] chance that it costs more
    leaves: FloatArray  # [G, G] chance of each amount that it may leave
    mean_cost_usd: float

    @classmethod
    def of(cls, cost_usd: FloatArray, quality: FloatArray, is_kind: BoolArray, money_usd: FloatArray) -> "_Answers":
        """cost_usd, quality: [N] of the model's answers, NaN where there is none; is_kind: [N]."""
        known = np.isfinite(cost_usd)
        rows = known & is_kind
        if np.count_nonzero(rows) < MIN_ANSWERS:
            rows = known
        costs, index = np.unique(cost_usd[rows], return_inverse=True)
        values = quality[rows]
        judged = np.isfinite(values)
        count = np.bincount(index, minlength=len(costs)) / len(index)
        worth = np.bincount(index[judged], values[judged], len(costs)) / max(int(judged.sum()), 1)
        left_usd = money_usd[:, None] - costs  # [G, distinct costs]
        fits = left_usd >= 0
        place = np.interp(np.log(np.maximum(left_usd, money_usd[0])), np.log(money_usd), np.arange(len(money_usd)))
        low = np.minimum(place.astype(np.int64), len(money_usd) - 2)
        leaves, chance = np.zeros((len(money_usd), len(money_usd))), np.where(fits, count, 0.0)
        start = np.broadcast_to(np.arange(len(money_usd))[:, None], low.shape)
        np.add.at(leaves, (start, low), chance * (1 - (place - low)))
        np.add.at(leaves, (start, low + 1), chance * (place - low))
        return cls(fits @ worth, 1 - chance.sum(axis=1), leaves, float(count @ costs))


def _plan(answers: list[_Answers], goes_on: FloatArray) -> FloatArray:
    """[T, K, G] chance of bankruptcy, by backward induction; goes_on: [T]."""
    earned, breaks, leaves = (
        np.stack([getattr(model, name) for model in answers]) for name in ("earned", "breaks", "leaves")
    )
    chances = np.empty((len(goes_on), *earned.shape))
    value, chance_later = np.zeros(earned.shape[1]), np.zeros(earned.shape[1])
    for t in reversed(range(len(goes_on))):
        quality = earned + goes_on[t] * (leaves @ value)
        chances[t] = breaks + goes_on[t] * (leaves @ chance_later)
        best = np.argmax(quality - PLAN_PRICE * chances[t], axis=0)[None]
        value, chance_later = (np.take_along_axis(x, best, axis=0)[0] for x in (quality, chances[t]))
    return chances
