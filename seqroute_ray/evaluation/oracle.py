"""The clairvoyant oracle: the best that any router could do on a session whose outcomes it knew beforehand."""

from dataclasses import dataclass

import numpy as np

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult

QUALITY_STEPS = 20  # quality is rounded down to 1/20 in the table; exact for 0/1 outcomes
_INFINITE = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class OraclePlan:
    """cost[t][s, j]: least money for total quality j / QUALITY_STEPS (or more) over the first t turns of session s."""

    cost: list[IntArray]
    choice: list[IntArray]  # choice[t][s, j]: the action of turn t in that plan


def plan_oracle(sessions: Sessions) -> OraclePlan:
    """Dynamic programming over (turn, quality so far): one table serves every budget."""
    num_turns = sessions.num_turns
    binary = bool(np.isin(sessions.outcome_quality, (0.0, 1.0)).all())
    steps = 1 if binary else QUALITY_STEPS
    levels = int(num_turns.max()) * steps + 1
    gain = np.floor(sessions.outcome_quality * steps + 1e-6).astype(np.int64)  # [N, K]
    cost = [np.where(np.arange(levels) == 0, 0, _INFINITE)[None, :].repeat(sessions.num_sessions, axis=0)]
    choice: list[IntArray] = []
    for t in range(int(num_turns.max())):
        after = np.full_like(cost[-1], _INFINITE)
        picked = np.full_like(cost[-1], -1)
        live = np.flatnonzero(num_turns > t)
        rows = sessions.offsets[live] + t
        for action in range(len(sessions.catalog)):
            source = np.arange(levels)[None, :] - gain[rows, action][:, None]
            reach = np.where(source >= 0, np.take_along_axis(cost[-1][live], np.maximum(source, 0), axis=1), _INFINITE)
            total = np.minimum(reach + sessions.outcome_cost_nusd[rows, action][:, None], _INFINITE)
            better = total < after[live]
            after[live] = np.where(better, total, after[live])
            picked[live] = np.where(better, action, picked[live])
        cost.append(after)
        choice.append(picked)
    return OraclePlan(cost, choice)


def replay_oracle(plan: OraclePlan, sessions: Sessions, budget_nusd: IntArray) -> ReplayResult:
    """Follow the best affordable plan of each session; of equal quality, the longest served, then the cheapest."""
    num_turns, num_rows = sessions.num_turns, len(sessions.action)
    best_level = np.full(sessions.num_sessions, -1)
    best_end = np.zeros(sessions.num_sessions, dtype=np.int64)
    for end, cost in enumerate(plan.cost):
        fits = (cost <= budget_nusd[:, None]) & (num_turns >= end)[:, None]
        level = np.where(fits.any(axis=1), cost.shape[1] - 1 - np.argmax(fits[:, ::-1], axis=1), -1)
        better = level >= best_level
        best_level, best_end = np.where(better, level, best_level), np.where(better, end, best_end)
    action = np.full(num_rows, UNSERVED, dtype=np.int64)
    quality, spent = np.zeros(num_rows, dtype=np.float32), np.zeros(num_rows, dtype=np.int64)
    steps = (plan.cost[0].shape[1] - 1) // int(num_turns.max())
    level = best_level.copy()
    for t in range(int(num_turns.max()) - 1, -1, -1):
        live = np.flatnonzero(best_end > t)
        rows = sessions.offsets[live] + t
        chosen = plan.choice[t][live, level[live]]
        action[rows], quality[rows] = chosen, sessions.outcome_quality[rows, chosen]
        spent[rows] = sessions.outcome_cost_nusd[rows, chosen]
        level[live] -= np.floor(quality[rows] * steps + 1e-6).astype(np.int64)
    before = _remaining_before(sessions, budget_nusd, spent)
    bankrupt, bankrupting = best_end < num_turns, np.zeros(num_rows, dtype=np.bool_)
    bankrupting[sessions.offsets[:-1][bankrupt] + best_end[bankrupt]] = True
    return ReplayResult(action, quality, spent, bankrupt, bankrupting, before)


def _remaining_before(sessions: Sessions, budget_nusd: IntArray, spent: IntArray) -> IntArray:
    """[N] money left before each turn."""
    running = np.cumsum(spent) - spent
    start = np.repeat(running[sessions.offsets[:-1]], sessions.num_turns)
    return np.repeat(budget_nusd, sessions.num_turns) - (running - start)
