"""The dynamic program behind a RiskTable: what recorded answers cost, by type of task, and how long sessions last."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.sessions import Sessions, observed_outcomes

PLAN_PRICE = 15.0  # of a bankruptcy in the plan, in turns of full quality; 8 to 30 give about the same policy
NUM_MONEY_STEPS = 60  # of the table
FINER = 4  # times as many steps to plan on: what a turn leaves falls between two of them, and that adds up over turns
MIN_MONEY, MAX_MONEY = 1e-4, 2.0  # ends of the table, as multiples of the reference cost; the upper one at least
AMPLE = 1.5  # times the mean cost of the longest session with the dearest model: money that cannot run out
MAX_TURNS, MAX_LONGER = 64, 0.01  # turns that are planned, and the share of sessions that may have more
MIN_ANSWERS = 30  # of a model to tasks of a type; with fewer, its answers to all types stand for them
COST_STEP = 0.002  # costs closer than this, in logarithms, count as one
MIN_COST_USD = 1e-12


def plan_risk(sessions: Sessions, types: NDArray[np.str_], reference_cost_usd: float) -> RiskTable | None:
    """Plan on what the sessions' answers cost and were worth, by type [R].

    A session keeps the type of its turn, and goes on with the chance that recorded sessions did. The best model by
    quality less PLAN_PRICE times the chance of bankruptcy answers each later turn. None where types are not told apart,
    or sessions are longer than a plan.
    """
    if types.tolist() == [UNKNOWN_TYPE] or np.mean(sessions.num_turns > MAX_TURNS) > MAX_LONGER:
        return None
    quality, cost_usd = observed_outcomes(sessions)
    num_turns = np.minimum(sessions.num_turns, MAX_TURNS)
    reached = np.array([np.count_nonzero(num_turns > t) for t in range(int(num_turns.max()) + 1)])
    goes_on = reached[1:] / reached[:-1]  # [T]
    dearest_usd = float(np.nanmax(np.nanmean(cost_usd, axis=0)))
    ends_usd = MIN_MONEY * reference_cost_usd, max(MAX_MONEY * reference_cost_usd, AMPLE * len(goes_on) * dearest_usd)
    money_usd = np.geomspace(*ends_usd, FINER * (NUM_MONEY_STEPS - 1) + 1)
    num_models = quality.shape[1]
    chance = np.empty((len(goes_on), len(types), num_models, NUM_MONEY_STEPS), dtype=np.float32)
    mean_cost_usd = np.empty((len(types), num_models))
    for kind, name in enumerate(types.tolist()):
        is_kind = sessions.source == name
        answers = [_Answers.of(cost_usd[:, k], quality[:, k], is_kind, money_usd) for k in range(num_models)]
        chance[:, kind] = _plan(answers, goes_on)[..., ::FINER]
        mean_cost_usd[kind] = [model.mean_cost_usd for model in answers]
    return RiskTable(chance, money_usd[::FINER], mean_cost_usd)


@dataclass(frozen=True)
class _Answers:
    """What an answer of one model to one type of task does to G amounts of money."""

    earned: FloatArray  # [G] expected quality
    breaks: FloatArray  # [G] chance that it costs more
    leaves: FloatArray  # [G, G] chance of each amount that it may leave
    mean_cost_usd: float

    @classmethod
    def of(cls, cost_usd: FloatArray, quality: FloatArray, is_kind: BoolArray, money_usd: FloatArray) -> "_Answers":
        """cost_usd, quality: [N] of the model's answers, NaN where unknown; is_kind: [N]."""
        billed, judged = (_enough(np.isfinite(values), is_kind) for values in (cost_usd, quality))
        steps = np.round(np.log(np.maximum(cost_usd[billed], MIN_COST_USD)) / COST_STEP)
        step, count = np.unique(steps, return_counts=True)
        costs, share, num_steps = np.exp(step * COST_STEP), count / count.sum(), len(money_usd)
        left_usd = money_usd[:, None] - costs  # [G, distinct costs]
        chance = np.where(left_usd >= 0, share, 0.0)
        place = np.interp(np.log(np.maximum(left_usd, money_usd[0])), np.log(money_usd), np.arange(num_steps))
        low = np.minimum(place.astype(np.int64), num_steps - 2)
        cell, above = (np.arange(num_steps)[:, None] * num_steps + low).ravel(), (place - low).ravel()
        weight, size = chance.ravel(), num_steps * num_steps
        cells = np.concatenate([cell, cell + 1])
        leaves = np.bincount(cells, np.concatenate([weight * (1 - above), weight * above]), size).astype(np.float64)
        fits = chance.sum(axis=1)
        worth = float(quality[judged].mean()) if judged.any() else 0.0
        return cls(fits * worth, 1 - fits, leaves.reshape(num_steps, num_steps), float(cost_usd[billed].mean()))


def _enough(known: BoolArray, is_kind: BoolArray) -> BoolArray:
    """[N] the known ones of the kind, or all where those are too few."""
    rows = known & is_kind
    return rows if np.count_nonzero(rows) >= MIN_ANSWERS else known


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
