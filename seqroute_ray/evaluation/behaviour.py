"""How policies behave, at the setting each is compared with: where they spend, when they save, when they switch."""

from typing import Any

import numpy as np

from seqroute_ray.core.arrays import BoolArray, IntArray
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult

LATE = 0.5  # of a session's turns come before a late one


def behaviour(result: ReplayResult, sessions: Sessions, strong: int, weak: int, budget_usd: float) -> dict[str, Any]:
    """Figures of one replay. strong, weak: the best and the cheapest model of the pool.

    strong_slope: change of P(strong) over remaining money, from none to the whole budget, by least squares.
    strong_on_late_hard: share of strong calls among late turns that only the strong model solves (delayed
    gratification); strong_on_late_easy: among late turns that the weak one solves too.
    """
    taken = result.action != UNSERVED
    is_strong = (result.action == strong).astype(np.float64)
    late = taken & (sessions.turn >= LATE * np.repeat(sessions.num_turns, sessions.num_turns))
    solved = sessions.outcome_quality > 0.5
    left = to_usd(result.remaining_nusd[taken]) / budget_usd
    focused = is_focused(sessions)
    return {
        "switches_per_session": _switches(result.action, sessions) / sessions.num_sessions,
        "strong_slope": _slope(left, is_strong[taken]),
        "strong_on_late_hard": _mean(is_strong, late & solved[:, strong] & ~solved[:, weak]),
        "strong_on_late_easy": _mean(is_strong, late & solved[:, weak]),
        "model_share_by_source": _shares_by_source(result.action, sessions, taken),
        **{name: _figures(result, sessions, which) for name, which in (("focused", focused), ("mixed", ~focused))},
    }


def is_focused(sessions: Sessions) -> BoolArray:
    """[S] sessions whose turns are all of one type of task."""
    first = np.repeat(sessions.source[sessions.offsets[:-1]], sessions.num_turns)
    changes = np.add.reduceat(sessions.source != first, sessions.offsets[:-1])
    return np.asarray(changes == 0)


def _figures(result: ReplayResult, sessions: Sessions, which: BoolArray) -> dict[str, float | None]:
    """Of some sessions [S]."""
    turns = np.repeat(which, sessions.num_turns)
    return {
        "quality": _mean(result.quality, turns),
        "cost_usd_per_turn": _mean(to_usd(result.cost_nusd), turns),
        "bankruptcy_rate": _mean(result.bankrupt, which),
    }


def _mean(values: Any, which: BoolArray) -> float | None:
    """None where there is nothing."""
    return float(values[which].mean()) if which.any() else None


def _switches(action: IntArray, sessions: Sessions) -> int:
    """How often a turn's model differs from the one before, in all sessions."""
    changed = (action[1:] != action[:-1]) & (action[1:] != UNSERVED)
    changed[sessions.offsets[1:-1] - 1] = False  # a session's first turn follows nothing
    return int(changed.sum())


def _slope(x: Any, y: Any) -> float:
    """Of the least-squares line; 0 where either does not vary."""
    return float(np.cov(x, y, bias=True)[0, 1] / np.var(x)) if len(x) and np.var(x) > 0 else 0.0


def _shares_by_source(action: IntArray, sessions: Sessions, taken: BoolArray) -> dict[str, dict[str, float]]:
    table = {}
    for source in np.unique(sessions.source[taken]).tolist():
        counts = np.bincount(action[taken & (sessions.source == source)], minlength=len(sessions.catalog))
        table[source] = dict(zip(sessions.catalog.names, (counts / counts.sum()).tolist(), strict=True))
    return table
