"""Logs for off-policy evaluation whose truth is known: every path of a session once, or as many as a logger draws."""

from dataclasses import replace
from itertools import product

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.ope_log import LoggedPaths, follow
from tests.support import make_sessions


def acting(sessions: Sessions, action: IntArray, propensity: FloatArray | float) -> Sessions:
    """The sessions with these actions [N] logged, and the outcomes that belong to them."""
    rows = np.arange(len(action))
    return replace(
        sessions,
        action=action,
        quality=sessions.outcome_quality[rows, action],
        cost_nusd=sessions.outcome_cost_nusd[rows, action],
        propensity=np.broadcast_to(np.float32(propensity), action.shape).astype(np.float32),
    )


def every_path(num_turns: int, num_models: int, seed: int = 0) -> Sessions:
    """One random session as often as it has paths, each once: the expectation over a uniform logger is the mean."""
    one = make_sessions([num_turns], num_models, seed)
    paths = np.array(list(product(range(num_models), repeat=num_turns)))
    copies = one.take(np.zeros(len(paths), dtype=np.int64))
    copies = replace(copies, session_id=np.arange(len(paths)).astype(np.str_))
    return acting(copies, paths.reshape(-1), 1 / num_models)


def random_target(paths: LoggedPaths, seed: int) -> FloatArray:
    """[N, K] chances that depend on the turn, and on what remains of the budget, alone."""
    num_models = len(paths.sessions.catalog)
    target = np.empty((len(paths.remaining_nusd), num_models))
    for row, (turn, remaining) in enumerate(zip(paths.sessions.turn, paths.remaining_nusd, strict=True)):
        rng = np.random.default_rng([seed, int(turn), int(remaining) % 2**32])
        target[row] = rng.dirichlet(np.full(num_models, 0.5))
    return target


def value_of(paths: LoggedPaths, target: FloatArray) -> float:
    """Quality that the target earns in the session of every_path: the paths' rewards by their chances."""
    sessions = paths.sessions
    taken = np.where(paths.decided, target[np.arange(len(target)), sessions.action], 1 / len(sessions.catalog))
    chance = np.multiply.reduceat(taken, sessions.offsets[:-1])
    return float(np.sum(chance * np.add.reduceat(paths.reward, sessions.offsets[:-1])))


def cut(sessions: Sessions, budget_nusd: int) -> LoggedPaths:
    """Under one budget for all."""
    return follow(sessions, np.full(sessions.num_sessions, budget_nusd))


# A world of two models and three turns, of which turn and units left are all there is to know.
QUALITY = (0.4, 0.8)  # chance of a good answer
COSTS = ((1, 1), (2, 4))  # units, equally likely
NUM_TURNS, BUDGET_UNITS, UNIT_NUSD = 3, 6, 1000


def thrifty(units_left: IntArray) -> FloatArray:
    """[n, 2]: the dear model with chance 0.8 while four units are left, else 0.1."""
    dear = np.where(units_left >= 4, 0.8, 0.1)
    return np.stack([1 - dear, dear], axis=1)


def exact_value() -> float:
    """Mean quality a session of `thrifty`, by recursion over turn and units left."""

    def value(turn: int, units: int) -> float:
        if turn == NUM_TURNS:
            return 0.0
        total = 0.0
        for action, chance in enumerate(thrifty(np.array([units]))[0]):
            for cost in COSTS[action]:
                if cost <= units:
                    total += chance / 2 * (QUALITY[action] + value(turn + 1, units - cost))
        return float(total)

    return value(0, BUDGET_UNITS)


def draw_log(num_sessions: int, rng: np.random.Generator) -> Sessions:
    """Of a logger that takes the dear model on 60 % of turns; every turn a question of its own."""
    sessions = make_sessions([NUM_TURNS] * num_sessions)
    size = (NUM_TURNS * num_sessions, 2)
    cost_units = np.where(rng.random(size) < 0.5, *np.array(COSTS).T)
    action = (rng.random(size[0]) < 0.6).astype(np.int64)
    sessions = replace(
        sessions,
        outcome_quality=(rng.random(size) < QUALITY).astype(np.float32),
        outcome_cost_nusd=cost_units * UNIT_NUSD,
    )
    return acting(sessions, action, np.where(action == 1, 0.6, 0.4))


def thrifty_target(paths: LoggedPaths) -> FloatArray:
    return thrifty(paths.remaining_nusd // UNIT_NUSD)


def state_features(paths: LoggedPaths) -> FloatArray:
    """[N, 2, F] one-hot of turn, units left and model: a linear model of these is a table."""
    units = np.clip(paths.remaining_nusd // UNIT_NUSD, 0, BUDGET_UNITS)
    num_states = NUM_TURNS * (BUDGET_UNITS + 1)
    state = np.eye(num_states)[paths.sessions.turn * (BUDGET_UNITS + 1) + units]
    zeros = np.zeros_like(state)
    return np.stack([np.concatenate([state, zeros], axis=1), np.concatenate([zeros, state], axis=1)], axis=1)
