"""Replay: exact book-keeping under hard budgets, the same as relabeling's; a policy sees no more than it may."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.mdp import NO_ACTION
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions, observed_outcomes
from seqroute_ray.evaluation.baselines import BudgetHeuristic, FixedModel, QPolicy, RandomModel, SourceTable
from seqroute_ray.evaluation.replay import UNSERVED, Policy, ReplayData, ReplayResult, Turns, replay
from tests.support import (
    MEAN_COST_USD,
    make_estimator,
    make_layout,
    make_network,
    make_replay_data,
    make_sessions,
    random_sessions,
)

MAX_BUDGET_NUSD = 25_000_000  # five of the dearest turns of make_sessions


def every_policy(data: ReplayData, seed: int) -> list[Policy]:
    num_models = data.layout.num_models
    quality, cost_usd = observed_outcomes(data.sessions)
    network = make_network(data.layout, seed)
    return [
        *(FixedModel(action, f"only {action}") for action in range(num_models)),
        RandomModel(seed),
        BudgetHeuristic(np.linspace(0.5, 1.5, num_models) * MEAN_COST_USD),
        SourceTable.fit(data.sessions, quality, cost_usd),
        QPolicy(network, penalty=1.0),
        QPolicy(network, penalty=20.0, lambda_per_usd=1e3),
    ]


def assert_book_is_right(result: ReplayResult, sessions: Sessions, budget_nusd: IntArray) -> None:
    """Walk every session with Python's exact integers."""
    for s in range(sessions.num_sessions):
        remaining, alive = int(budget_nusd[s]), True
        for row in range(int(sessions.offsets[s]), int(sessions.offsets[s + 1])):
            action, spent, quality = int(result.action[row]), int(result.cost_nusd[row]), float(result.quality[row])
            if not alive:
                assert (action, spent, quality) == (UNSERVED, 0, 0.0)
                continue
            assert int(result.remaining_nusd[row]) == remaining
            cost = int(sessions.outcome_cost_nusd[row, action])
            alive = cost <= remaining
            assert spent == (cost if alive else 0)
            assert quality == (float(sessions.outcome_quality[row, action]) if alive else 0.0)
            remaining -= spent
        assert remaining >= 0
        assert bool(result.bankrupt[s]) == (not alive)


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(0, 2**32 - 1))
def test_no_policy_ever_spends_more_than_the_budget(sessions: Sessions, seed: int) -> None:
    data = make_replay_data(sessions, seed)
    budget_nusd = np.random.default_rng(seed).integers(0, MAX_BUDGET_NUSD, size=sessions.num_sessions)
    for policy in every_policy(data, seed):
        assert_book_is_right(replay(policy, data, budget_nusd), sessions, budget_nusd)


def test_a_bankruptcy_worked_by_hand() -> None:
    sessions = make_sessions([4, 2])
    sessions.outcome_cost_nusd[:, 0] = [3, 4, 5, 1, 5, 5]
    sessions.outcome_quality[:, 0] = [0.5, 0.25, 1.0, 1.0, 0.75, 1.0]
    result = replay(FixedModel(0, "only 0"), make_replay_data(sessions), np.array([11, 10]))
    # 11 pays for 3 and 4; the turn of 5 does not fit into 4, and the free money is of no use to the turn of 1.
    assert result.action.tolist() == [0, 0, 0, UNSERVED, 0, 0]
    assert result.remaining_nusd[:3].tolist() == [11, 8, 4]
    assert result.cost_nusd.tolist() == [3, 4, 0, 0, 5, 5]
    assert result.quality.tolist() == [0.5, 0.25, 0.0, 0.0, 0.75, 1.0]
    assert result.bankrupt.tolist() == [True, False]


def test_a_free_turn_is_served_when_nothing_is_left() -> None:
    sessions = make_sessions([2])
    sessions.outcome_cost_nusd[:, 0] = [7, 0]
    result = replay(FixedModel(0, "only 0"), make_replay_data(sessions), np.array([7]))
    assert result.cost_nusd.tolist() == [7, 0]
    assert not result.bankrupt.any()


@dataclass(frozen=True)
class LoggedModel:
    """The model of the logs, and everything that it was asked for."""

    name: str = "logged"
    asked: list[Turns] = field(default_factory=list)

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        self.asked.append(turns)
        return data.sessions.action[turns.row]


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(1, MAX_BUDGET_NUSD))
def test_a_policy_sees_the_turns_of_living_sessions_and_nothing_after_their_end(
    sessions: Sessions, budget_nusd: int
) -> None:
    policy = LoggedModel()
    result = replay(policy, make_replay_data(sessions), np.full(sessions.num_sessions, budget_nusd))
    seen = np.concatenate([turns.row for turns in policy.asked])
    np.testing.assert_array_equal(np.sort(seen), np.flatnonzero(result.action != UNSERVED))
    for turns in policy.asked:
        assert (sessions.turn[turns.row] == turns.turn).all()
        np.testing.assert_array_equal(turns.remaining_usd, to_usd(result.remaining_nusd[turns.row]))
        before = NO_ACTION if turns.turn == 0 else sessions.action[turns.row - 1]
        np.testing.assert_array_equal(turns.previous_action, np.broadcast_to(before, turns.row.shape))


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(1, MAX_BUDGET_NUSD))
def test_replaying_the_logged_models_is_what_relabeling_says_of_them(sessions: Sessions, budget_nusd: int) -> None:
    result = replay(LoggedModel(), make_replay_data(sessions), np.full(sessions.num_sessions, budget_nusd))
    config = HbrConfig(budgets_usd=(budget_nusd / 1e9,), bankruptcy_penalty=3.0)
    transitions = relabel(sessions, 0, 1.0, config)
    rows = transitions.turn_row
    np.testing.assert_array_equal(rows, np.flatnonzero(result.action != UNSERVED))
    np.testing.assert_array_equal(transitions.action, result.action[rows])
    np.testing.assert_array_equal(transitions.remaining_nusd, result.remaining_nusd[rows])
    np.testing.assert_array_equal(np.where(transitions.bankrupt, 0, transitions.cost_nusd), result.cost_nusd[rows])
    np.testing.assert_array_equal(np.where(transitions.bankrupt, 0, transitions.reward), result.quality[rows])
    assert transitions.bankrupt.sum() == result.bankrupt.sum()


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(1, MAX_BUDGET_NUSD), st.data())
def test_a_session_is_replayed_the_same_alone_and_among_others(
    sessions: Sessions, budget_nusd: int, data: st.DataObject
) -> None:
    s = data.draw(st.integers(0, sessions.num_sessions - 1))
    policy = QPolicy(make_network(make_layout(len(sessions.catalog))), penalty=2.0)
    together = replay(policy, make_replay_data(sessions), np.full(sessions.num_sessions, budget_nusd))
    alone = replay(policy, make_replay_data(sessions.take(np.array([s]))), np.array([budget_nusd]))
    rows = slice(sessions.offsets[s], sessions.offsets[s + 1])
    for name in ("action", "quality", "cost_nusd", "remaining_nusd"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[rows], err_msg=name)
    assert alone.bankrupt[0] == together.bankrupt[s]


def test_sessions_that_lack_an_outcome_are_refused_with_the_way_out() -> None:
    sessions = make_sessions([2, 3])
    no_cost, no_quality = sessions.outcome_cost_nusd.copy(), sessions.outcome_quality.copy()
    no_cost[3, 1], no_quality[3, 1] = NOT_MEASURED_NUSD, np.nan
    for lacking in (replace(sessions, outcome_cost_nusd=no_cost), replace(sessions, outcome_quality=no_quality)):
        with pytest.raises(DataError, match=r"replay needs the outcome of every model .* `sample --with-outcomes`"):
            ReplayData.prepare(lacking, make_estimator(), make_layout())
