"""Replay: exact book-keeping under hard budgets, the same as relabeling's; a policy sees no more than it may."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.policy import RiskPrices
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions
from seqroute_ray.evaluation.baselines import BudgetHeuristic, FirstLarge, FixedModel, QPolicy, RandomModel
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

RISK = RiskPrices((0.1, 1.0), (4.0, 1.0))
MAX_BUDGET_NUSD = 25_000_000  # five of the dearest turns of make_sessions


def every_policy(data: ReplayData, seed: int) -> list[Policy]:
    num_models = data.layout.num_models
    network = make_network(data.layout, seed)
    return [
        *(FixedModel(action) for action in range(num_models)),
        RandomModel(seed),
        BudgetHeuristic(np.linspace(0.5, 1.5, num_models) * MEAN_COST_USD),
        FirstLarge(0, num_models - 1, num_first=3),
        QPolicy(network, RISK),
        QPolicy(network, RiskPrices((1.0,), (20.0,)), lambda_per_usd=1e3),
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
    result = replay(FixedModel(0), make_replay_data(sessions), np.array([11, 10]))
    # 11 pays for 3 and 4; the turn of 5 does not fit into 4, and the free money is of no use to the turn of 1.
    assert result.action.tolist() == [0, 0, 0, UNSERVED, 0, 0]
    assert result.remaining_nusd[:3].tolist() == [11, 8, 4]
    assert result.cost_nusd.tolist() == [3, 4, 0, 0, 5, 5]
    assert result.quality.tolist() == [0.5, 0.25, 0.0, 0.0, 0.75, 1.0]
    assert result.bankrupt.tolist() == [True, False]


def test_the_learned_policy_is_replayed_also_where_no_session_lives_on() -> None:
    sessions = make_sessions([2, 3])
    data = make_replay_data(sessions)
    result = replay(QPolicy(make_network(data.layout), RISK), data, np.zeros(2, dtype=np.int64))
    assert result.bankrupt.tolist() == [True, True]
    assert (result.action == UNSERVED).tolist() == [False, True, False, True, True]


def test_a_free_turn_is_served_when_nothing_is_left() -> None:
    sessions = make_sessions([2])
    sessions.outcome_cost_nusd[:, 0] = [7, 0]
    result = replay(FixedModel(0), make_replay_data(sessions), np.array([7]))
    assert result.cost_nusd.tolist() == [7, 0]
    assert not result.bankrupt.any()


@dataclass(frozen=True)
class LoggedModel:
    """The model of the logs, and everything that it was asked for."""

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
        assert (turns.budget_usd == to_usd(np.array(budget_nusd))).all()


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(1, MAX_BUDGET_NUSD))
def test_replaying_the_logged_models_is_what_relabeling_says_of_them(sessions: Sessions, budget_nusd: int) -> None:
    result = replay(LoggedModel(), make_replay_data(sessions), np.full(sessions.num_sessions, budget_nusd))
    config = HbrConfig(budgets_usd=(budget_nusd / 1e9,), bankruptcy_penalty=3.0)
    transitions = relabel(sessions, 1.0, config)
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
    policy = QPolicy(make_network(make_layout(len(sessions.catalog))), RISK)
    together = replay(policy, make_replay_data(sessions), np.full(sessions.num_sessions, budget_nusd))
    alone = replay(policy, make_replay_data(sessions.take(np.array([s]))), np.array([budget_nusd]))
    rows = slice(sessions.offsets[s], sessions.offsets[s + 1])
    for name in ("action", "quality", "cost_nusd", "remaining_nusd"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[rows], err_msg=name)
    assert alone.bankrupt[0] == together.bankrupt[s]


def test_what_a_policy_knows_of_a_turn_depends_on_no_outcome_and_no_later_turn() -> None:
    sessions = make_sessions([4, 3])
    last = np.arange(7) == 3  # the last turn of the first session
    changed = replace(
        make_sessions([4, 3], seed=1),
        embedding=np.where(last[:, None], -sessions.embedding, sessions.embedding),
        source=np.where(last, "unseen", sessions.source),
        prompt_tokens=sessions.prompt_tokens + 10 * last,
    )
    before, after = make_replay_data(sessions).features, make_replay_data(changed).features
    for name in ("quality", "cost_usd", "cost_high_usd"):
        same = getattr(before.estimates, name) == getattr(after.estimates, name)
        np.testing.assert_array_equal(same.all(axis=1), ~last, err_msg=name)
    np.testing.assert_allclose(before.history[~last], after.history[~last], atol=1e-6)
    assert (before.history[last] != after.history[last]).any()


def test_sessions_that_lack_an_outcome_are_refused_with_the_way_out() -> None:
    sessions = make_sessions([2, 3])
    no_cost, no_quality = sessions.outcome_cost_nusd.copy(), sessions.outcome_quality.copy()
    no_cost[3, 1], no_quality[3, 1] = NOT_MEASURED_NUSD, np.nan
    for lacking in (replace(sessions, outcome_cost_nusd=no_cost), replace(sessions, outcome_quality=no_quality)):
        with pytest.raises(DataError, match=r"replay needs the outcome of every model .* `sample --with-outcomes`"):
            ReplayData.prepare(lacking, make_estimator(), make_layout())
