"""Hindsight budget relabeling: replay recorded action paths under budgets they never had.

The budget is book-keeping: it depends on nothing but recorded costs, so a path's transitions under any budget follow
by subtraction. Source: SeqRoute, arXiv:2605.25424. Pure numpy; integers, so that no result depends on a batch split.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.sessions import Sessions

PathKind = Literal["logged", "sampled", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HbrConfig:
    """Which paths are replayed, and under which budgets."""

    paths: PathKind = "logged"  # sampled and all need `outcomes` of every model in the logs
    num_paths: int = 8  # action paths a session, for paths=sampled
    path_concentration: float = 0.5  # Dirichlet parameter of a sampled path's mixture of models; large is uniform
    max_paths: int = 4096  # a session with more paths than this is an error for paths=all
    budgets_usd: tuple[float, ...] = ()  # the same budgets for every path; else num_budgets are drawn
    num_budgets: int = 7  # budgets drawn a path, stratified and log-uniform
    min_budget: float = 0.01  # lowest drawn budget, as a multiple of the pool's reference cost
    max_budget: float = 1.5  # highest drawn budget, as a multiple of the pool's reference cost
    bankruptcy_penalty: float = 2.0  # minus the reward of a turn that does not fit, in turns of full quality; > 0
    seed: int = 0  # of sampled paths and drawn budgets

    def __post_init__(self) -> None:
        if any(not budget > 0 for budget in self.budgets_usd):
            raise ConfigError(f"budgets_usd must be > 0, got {self.budgets_usd}")
        if not 0 < self.min_budget < self.max_budget:
            raise ConfigError(f"budgets need 0 < min_budget < max_budget, got {self.min_budget} and {self.max_budget}")
        for name in ("num_paths", "max_paths", "num_budgets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.path_concentration > 0:
            raise ConfigError(f"path_concentration must be > 0, got {self.path_concentration}")
        if not self.bankruptcy_penalty > 0:
            raise ConfigError(f"bankruptcy_penalty must be > 0, got {self.bankruptcy_penalty}")


@dataclass(frozen=True)
class Transitions:
    """M transitions, column by column. The next state is turn_row + 1 with remaining - cost, unless terminated."""

    turn_row: IntArray  # [M] row of the turn table
    turn: IntArray  # [M] position in the session, from 0
    action: IntArray  # [M]
    remaining_nusd: IntArray  # [M] before the turn
    cost_nusd: IntArray  # [M] of the turn; not spent when it bankrupts
    reward: NDArray[np.float32]  # [M]
    terminated: NDArray[np.bool_]  # [M] last turn or bankruptcy
    bankrupt: NDArray[np.bool_]  # [M]

    def __len__(self) -> int:
        return len(self.turn_row)

    def take(self, rows: IntArray) -> "Transitions":
        return Transitions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence["Transitions"]) -> "Transitions":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def relabel(sessions: Sessions, first_turn_row: int, reference_cost_usd: float, config: HbrConfig) -> Transitions:
    """Replay the paths of each session under each budget.

    first_turn_row: the turn table's row of the first session's first turn. Returns up to S * P * B * T rows in the
    order session, path, budget, turn. A judged turn is a transition; a turn without a judgement keeps its cost and is
    left out, unless it bankrupts.
    """
    parts = []
    for length in np.unique(sessions.num_turns):
        index = np.flatnonzero(sessions.num_turns == length)
        parts.append((index, _relabel_equal_length(sessions, index, int(length), reference_cost_usd, config)))
    session = np.concatenate([np.repeat(index, counts) for index, (counts, _) in parts])
    merged = Transitions.concatenate([rows for _, (_, rows) in parts])
    order = np.argsort(session, kind="stable")
    ordered = merged.take(order)
    ordered.turn_row[:] += first_turn_row
    return ordered


def _relabel_equal_length(
    sessions: Sessions, index: IntArray, length: int, reference_cost_usd: float, config: HbrConfig
) -> tuple[IntArray, Transitions]:
    """Transitions of the sessions at `index`, all of `length` turns, and how many each of them gave."""
    turn_rows = sessions.offsets[index][:, None] + np.arange(length)  # [S, T]
    actions = paths_of(sessions, index, length, config)  # [S, P, T]
    cost_nusd, quality = outcomes_of(sessions, turn_rows, actions, config)  # [S, P, T]
    budgets_nusd = np.stack(
        [budgets_of(str(sessions.session_id[s]), actions.shape[1], reference_cost_usd, config) for s in index]
    )  # [S, P, B]
    spent_before = np.cumsum(cost_nusd, axis=2) - cost_nusd
    remaining = budgets_nusd[:, :, :, None] - spent_before[:, :, None, :]  # [S, P, B, T]
    cost = np.broadcast_to(cost_nusd[:, :, None, :], remaining.shape)
    bankrupt = cost > remaining
    reached: BoolArray = np.cumsum(bankrupt, axis=3) - bankrupt == 0  # no earlier turn went bankrupt
    reward = np.where(bankrupt, -config.bankruptcy_penalty, quality[:, :, None, :])
    keep = reached & np.isfinite(reward)
    last = np.arange(length) == length - 1

    def column(values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values, remaining.shape)[keep]

    rows = Transitions(
        turn_row=column(turn_rows[:, None, None, :]),
        turn=column(np.arange(length)),
        action=column(actions[:, :, None, :]),
        remaining_nusd=remaining[keep],
        cost_nusd=cost[keep],
        reward=reward[keep].astype(np.float32),
        terminated=(bankrupt | last)[keep],
        bankrupt=bankrupt[keep],
    )
    return keep.sum(axis=(1, 2, 3)), rows


def _rng(config: HbrConfig, session_id: str, purpose: str) -> np.random.Generator:
    """Random numbers of one session: the same whichever worker, batch or order it is in."""
    digest = hashlib.sha256(f"{config.seed}/{purpose}/{session_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def paths_of(sessions: Sessions, index: IntArray, length: int, config: HbrConfig) -> IntArray:
    """[S, P, T] action paths of sessions of one length. Raises ConfigError when all paths are too many."""
    num_models = len(sessions.catalog)
    if config.paths == "logged":
        rows = sessions.offsets[index][:, None] + np.arange(length)
        return np.asarray(sessions.action[rows][:, None, :])
    if config.paths == "sampled":
        return np.stack(
            [
                sample_paths(_rng(config, str(sessions.session_id[s]), "paths"), num_models, length, config)
                for s in index
            ]
        )
    num_paths = num_models**length
    if num_paths > config.max_paths:
        raise ConfigError(
            f"session {str(sessions.session_id[index[0]])!r} has {num_models}^{length} = {num_paths} paths, more than "
            f"max_paths {config.max_paths}; use paths=sampled or raise max_paths"
        )
    every = np.stack(np.unravel_index(np.arange(num_paths), (num_models,) * length), axis=1)
    return np.broadcast_to(every, (len(index), num_paths, length))


def sample_paths(rng: np.random.Generator, num_models: int, length: int, config: HbrConfig) -> IntArray:
    """[P, T] paths; each draws its own mixture of models, so that thrifty sessions are seen to their end.

    With one uniform mixture hardly any path lives through its later turns under a small budget.
    """
    mixture = rng.dirichlet(np.full(num_models, config.path_concentration), size=config.num_paths)
    uniform = rng.random((config.num_paths, length))
    drawn = (uniform[:, :, None] > np.cumsum(mixture, axis=1)[:, None, :]).sum(axis=2)
    return np.asarray(np.minimum(drawn, num_models - 1))


def outcomes_of(
    sessions: Sessions, turn_rows: IntArray, actions: IntArray, config: HbrConfig
) -> tuple[IntArray, NDArray[np.float32]]:
    """Cost [S, P, T] in nano-dollars and quality of taking `actions` at `turn_rows` [S, T]."""
    if config.paths == "logged":
        return sessions.cost_nusd[turn_rows][:, None, :], sessions.quality[turn_rows][:, None, :]
    rows = np.broadcast_to(turn_rows[:, None, :], actions.shape)
    return sessions.outcome_cost_nusd[rows, actions], sessions.outcome_quality[rows, actions]


def budgets_of(session_id: str, num_paths: int, reference_cost_usd: float, config: HbrConfig) -> IntArray:
    """[P, B] budgets: the given ones, or one draw from each of B equal log-intervals."""
    if config.budgets_usd:
        return np.broadcast_to(to_nusd(np.array(config.budgets_usd)), (num_paths, len(config.budgets_usd)))
    rng = _rng(config, session_id, "budgets")
    position = (np.arange(config.num_budgets) + rng.random((num_paths, config.num_budgets))) / config.num_budgets
    low, high = np.log(config.min_budget), np.log(config.max_budget)
    multiple: FloatArray = np.exp(low + position * (high - low))
    return to_nusd(multiple * reference_cost_usd)
