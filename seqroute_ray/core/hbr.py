"""Hindsight budget relabeling: replay recorded action paths under budgets they never had.

The budget is book-keeping: it depends on nothing but recorded costs, so a path's transitions under any budget follow
by subtraction. Source: SeqRoute, arXiv:2605.25424. Pure numpy; integers, so that no result depends on a batch split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.random_bits import Bits, bits, text_keys, uniform
from seqroute_ray.core.sessions import Sessions

PathKind = Literal["logged", "sampled", "all"]
MIN_BUDGET_USD, MAX_BUDGET_USD = 1e-9, 1e9  # what int64 nano-dollars hold, with room for sums
MAX_CELLS = 2_000_000  # of (session, path, budget, turn) replayed at once: bounds memory
_MIXTURE, _ACTIONS, _BUDGETS = range(3)  # what a path's random numbers are drawn for


@dataclass(frozen=True, slots=True, kw_only=True)
class HbrConfig:
    """Which paths are replayed, and under which budgets."""

    # The logged path; or, in sessions with the outcomes of every model, sampled paths or all of them up to max_paths
    # (sampled ones beyond). Other sessions keep their logged path.
    paths: PathKind = "logged"
    num_paths: int = 8  # sampled paths a session
    max_paths: int = 4096  # a session with more paths than this gets sampled ones for paths=all
    budgets_usd: tuple[float, ...] = ()  # the same budgets for every path, in USD
    budget_multiples: tuple[float, ...] = ()  # the same for every path, as multiples of the pool's reference cost
    num_budgets: int = 7  # without either: so many drawn for each path, stratified and log-uniform
    min_budget: float = 0.01  # lowest drawn budget, as a multiple of the pool's reference cost
    max_budget: float = 1.5  # highest drawn budget, as a multiple of the pool's reference cost
    bankruptcy_penalty: float = 2.0  # minus the reward of a turn that does not fit, in turns of full quality; > 0
    seed: int = 0  # of sampled paths and drawn budgets

    def __post_init__(self) -> None:
        for name in ("budgets_usd", "budget_multiples"):
            if any(not 0 < budget < np.inf for budget in getattr(self, name)):
                raise ConfigError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.budgets_usd and self.budget_multiples:
            raise ConfigError("budgets are given in USD or as multiples of the reference cost, got both; leave one out")
        if not 0 < self.min_budget < self.max_budget < np.inf:
            raise ConfigError(
                f"budgets need 0 < min_budget < max_budget, finite, got {self.min_budget} and {self.max_budget}"
            )
        for name in ("num_paths", "max_paths", "num_budgets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.bankruptcy_penalty < np.inf:
            raise ConfigError(f"bankruptcy_penalty must be > 0 and finite, got {self.bankruptcy_penalty}")

    def given_budgets_usd(self, reference_cost_usd: float) -> tuple[float, ...]:
        """The budgets that every path gets; none where they are drawn."""
        return self.budgets_usd or tuple(multiple * reference_cost_usd for multiple in self.budget_multiples)

    def check_budgets(self, reference_cost_usd: float) -> None:
        """Raises ConfigError when a budget is less than a nano-dollar or too much to count in them."""
        drawn = (self.min_budget * reference_cost_usd, self.max_budget * reference_cost_usd)
        for budget_usd in self.given_budgets_usd(reference_cost_usd) or drawn:
            if not MIN_BUDGET_USD <= budget_usd <= MAX_BUDGET_USD:
                raise ConfigError(
                    f"budgets must be {MIN_BUDGET_USD:g} to {MAX_BUDGET_USD:g} USD, got {budget_usd:g} (the reference "
                    f"cost is {reference_cost_usd:g} USD); give others"
                )


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


def relabel(sessions: Sessions, reference_cost_usd: float, config: HbrConfig) -> Transitions:
    """Replay the paths of each session under each budget.

    Returns up to S * P * B * T rows in the order session, path, budget, turn; turn_row counts the turns of `sessions`.
    A judged turn is a transition; a turn without a judgement keeps its cost and is left out, unless it bankrupts.
    """
    return Transitions.concatenate(list(relabel_in_chunks(sessions, reference_cost_usd, config)))


def relabel_in_chunks(sessions: Sessions, reference_cost_usd: float, config: HbrConfig) -> Iterator[Transitions]:
    """The rows of `relabel`, of some sessions at a time: at most twice MAX_CELLS are in memory, if one fits in."""
    config.check_budgets(reference_cost_usd)
    kind, num_paths = paths_kind(sessions, config)
    num_budgets = len(config.given_budgets_usd(reference_cost_usd)) or config.num_budgets
    cells = np.cumsum(num_paths * num_budgets * sessions.num_turns)
    chunk = cells // MAX_CELLS
    for index in np.split(np.arange(sessions.num_sessions), np.flatnonzero(np.diff(chunk)) + 1):
        yield _relabel_chunk(sessions, index, kind[index], reference_cost_usd, config)


def paths_kind(sessions: Sessions, config: HbrConfig) -> tuple[NDArray[np.str_], IntArray]:
    """[S] which paths each session gets (see HbrConfig.paths), and how many."""
    kind = np.where(sessions.is_tree, config.paths, "logged")
    # K ** T in floating point: exact far beyond any max_paths
    num_all = float(len(sessions.catalog)) ** np.minimum(sessions.num_turns, 64)
    kind = np.where((kind == "all") & (num_all > config.max_paths), "sampled", kind)
    num_paths = np.select([kind == "all", kind == "sampled"], [num_all, config.num_paths], 1)
    return kind, num_paths.astype(np.int64)


def _relabel_chunk(
    sessions: Sessions, index: IntArray, kind: NDArray[np.str_], reference_cost_usd: float, config: HbrConfig
) -> Transitions:
    """Transitions of the sessions at `index`: those that are alike at once, then put in order."""
    alike, counts, parts = [], [], []
    length = sessions.num_turns[index]
    # All paths of a session are as many as its length says. Of the other kinds all have as many; up to twice the mean
    # length they are padded to the longest, as are those of up to four times it, and so on: little is done for nothing.
    mean = np.zeros(len(index))
    for paths in set(kind.tolist()):
        mean[kind == paths] = length[kind == paths].mean()
    size = np.where(kind == "all", length, np.ceil(np.log2(np.maximum(length / (2 * mean), 1))))
    for paths, same in sorted(set(zip(kind.tolist(), size.tolist(), strict=True))):
        alike.append(np.flatnonzero((kind == paths) & (size == same)))
        count, rows = _relabel_alike(sessions, index[alike[-1]], paths, reference_cost_usd, config)
        counts.append(count)
        parts.append(rows)
    if len(parts) == 1:
        return parts[0]
    count, in_order = np.concatenate(counts), np.argsort(np.concatenate(alike))
    start = (np.cumsum(count) - count)[in_order]
    count = count[in_order]
    return Transitions.concatenate(parts).take(_runs(start, count))


def _runs(start: IntArray, count: IntArray) -> IntArray:
    """start[0], start[0] + 1, ..., so many as count[0] says; then those of start[1]; and so on."""
    return np.asarray(np.repeat(start - (np.cumsum(count) - count), count) + np.arange(count.sum()))


def _relabel_alike(
    sessions: Sessions, index: IntArray, kind: str, reference_cost_usd: float, config: HbrConfig
) -> tuple[IntArray, Transitions]:
    """Transitions of sessions of one kind and number of paths, and how many each of them gave.

    T turns are replayed of each, as many as the longest has; what is beyond a session's end is cut off.
    """
    num_turns = sessions.num_turns[index]
    length = int(num_turns.max())
    turns = np.arange(length, dtype=np.int16)
    inside = turns < num_turns[:, None]  # [S, T]
    turn_rows = sessions.offsets[index][:, None] + np.minimum(turns, num_turns[:, None] - 1)  # [S, T]
    keys = text_keys(config.seed, sessions.session_id[index].tolist())
    actions = paths_of(sessions, turn_rows, keys, kind, config)  # [S, P, T]
    cost_nusd, quality = outcomes_of(sessions, turn_rows, actions, kind)  # [S, P, T]
    budgets_nusd = budgets_of(keys, actions.shape[1], reference_cost_usd, config)  # [S, P, B]
    spent_before = np.cumsum(cost_nusd, axis=2) - cost_nusd
    remaining = budgets_nusd[:, :, :, None] - spent_before[:, :, None, :]  # [S, P, B, T]
    bankrupt = cost_nusd[:, :, None, :] > remaining
    # Costs are not negative: what remains is negative exactly from the turn after the bankrupting one on.
    keep: BoolArray = (remaining >= 0) & (bankrupt | np.isfinite(quality)[:, :, None, :]) & inside[:, None, None, :]
    at = np.flatnonzero(keep)
    path, turn = at // (keep.shape[2] * length), at % length  # [M] path: of S * P
    bankrupt = bankrupt.reshape(-1)[at]
    step = path * length + turn
    session = path // actions.shape[1]
    rows = Transitions(
        turn_row=turn_rows.astype(np.int32)[session, turn],
        turn=turn.astype(np.int16),
        action=actions.astype(np.int16).reshape(-1)[step],
        remaining_nusd=remaining.reshape(-1)[at],
        cost_nusd=cost_nusd.reshape(-1)[step],
        reward=np.where(bankrupt, np.float32(-config.bankruptcy_penalty), quality.reshape(-1)[step]),
        terminated=bankrupt | (turn == num_turns[session] - 1),
        bankrupt=bankrupt,
    )
    return np.count_nonzero(keep.reshape(len(index), -1), axis=1), rows


def paths_of(sessions: Sessions, turn_rows: IntArray, keys: Bits, kind: str, config: HbrConfig) -> IntArray:
    """[S, P, T] action paths of sessions of one length, by their turns' rows [S, T] and keys [S]."""
    num_models, length = len(sessions.catalog), turn_rows.shape[1]
    if kind == "logged":
        return np.asarray(sessions.action[turn_rows][:, None, :])
    if kind == "sampled":
        return sample_paths(keys, num_models, length, config.num_paths)
    every = np.stack(np.unravel_index(np.arange(num_models**length), (num_models,) * length), axis=1)
    return np.ascontiguousarray(np.broadcast_to(every, (len(turn_rows), *every.shape)))


def _path_keys(keys: Bits, num_paths: int, purpose: int) -> Bits:
    """[S, P, 1] path k's key depends on the session and k alone."""
    return bits(bits(keys[:, None], np.arange(num_paths)), purpose)[:, :, None]


def sample_paths(keys: Bits, num_models: int, length: int, num_paths: int) -> IntArray:
    """[S, P, T] paths; each draws its own mixture of models, so that thrifty sessions are seen to their end.

    With one uniform mixture hardly any path lives through its later turns under a small budget. The mixtures are
    Dirichlet(1/2): squares of independent normals, divided by their sum.
    """
    u = uniform(_path_keys(keys, num_paths, _MIXTURE), np.arange(2 * num_models))
    squares = -np.log1p(-u[..., :num_models]) * np.cos(2 * np.pi * u[..., num_models:]) ** 2
    levels = np.cumsum(squares, axis=2)
    drawn = uniform(_path_keys(keys, num_paths, _ACTIONS), np.arange(length)) * levels[:, :, -1:]
    actions = np.zeros(drawn.shape, dtype=np.int64)
    for model in range(num_models - 1):
        actions += drawn >= levels[:, :, model, None]
    return actions


def outcomes_of(
    sessions: Sessions, turn_rows: IntArray, actions: IntArray, kind: str
) -> tuple[IntArray, NDArray[np.float32]]:
    """Cost [S, P, T] in nano-dollars and quality of taking `actions` at `turn_rows` [S, T]."""
    if kind == "logged":
        return sessions.cost_nusd[turn_rows][:, None, :], sessions.quality[turn_rows][:, None, :]
    rows = turn_rows[:, None, :]
    return sessions.outcome_cost_nusd[rows, actions], sessions.outcome_quality[rows, actions]


def budgets_of(keys: Bits, num_paths: int, reference_cost_usd: float, config: HbrConfig) -> IntArray:
    """[S, P, B] budgets: the given ones, or one draw from each of B equal log-intervals."""
    given: Any = config.given_budgets_usd(reference_cost_usd)
    if given:
        return np.broadcast_to(to_nusd(np.array(given)), (len(keys), num_paths, len(given)))
    interval = np.arange(config.num_budgets)
    position = (interval + uniform(_path_keys(keys, num_paths, _BUDGETS), interval)) / config.num_budgets
    low, high = np.log(config.min_budget), np.log(config.max_budget)
    multiple: FloatArray = np.exp(low + position * (high - low))
    return to_nusd(multiple * reference_cost_usd)
