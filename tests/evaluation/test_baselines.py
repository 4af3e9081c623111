"""The baselines by hand, and the learned policy's mask."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.mdp import NO_ACTION, StateLayout, affordable
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import BudgetHeuristic, FixedModel, QPolicy, RandomModel, SourceTable
from seqroute_ray.evaluation.replay import Policy, ReplayData, Turns, replay
from tests.support import make_estimator, make_network, make_replay_data, make_sessions, random_sessions

EXPECTED_TURNS_LEFT = (4.0, 2.0)


def data_of(sessions: Sessions) -> ReplayData:
    """Replay data whose layout expects 4 turns at the first and 2 from the second on."""
    num_models = len(sessions.catalog)
    layout = StateLayout(num_models=num_models, reference_cost_usd=1.0, expected_turns_left=EXPECTED_TURNS_LEFT)
    return ReplayData.prepare(sessions, make_estimator(num_models), layout)


def ask(policy: Policy, data: ReplayData, turn: int, rows: list[int], remaining_usd: list[float]) -> list[int]:
    previous = np.full(len(rows), NO_ACTION)
    actions = policy.act(data, Turns(np.array(rows), turn, np.array(remaining_usd), previous))
    return [int(action) for action in actions]


def test_a_single_model_is_always_chosen() -> None:
    assert ask(FixedModel(1, "only"), data_of(make_sessions([3])), 0, [0, 1, 2], [0.0, 1.0, 9.0]) == [1, 1, 1]


def test_the_budget_heuristic_worked_by_hand() -> None:
    policy, data = BudgetHeuristic(np.array([2.0, 8.0, 4.0])), data_of(make_sessions([12], num_models=3))
    # Shares at the first turn: a quarter of 40, 32, 31, 16, 8, 7, 0; where not even 2 fits the cheapest stays.
    money_usd = [40.0, 32.0, 31.0, 16.0, 8.0, 7.0, 0.0]
    assert ask(policy, data, 0, [0] * 7, money_usd) == [1, 1, 2, 2, 0, 0, 0]
    # From the second turn on the half of it, also beyond the table's end.
    for turn in (1, 11):
        assert ask(policy, data, turn, [0] * 7, money_usd) == [1, 1, 1, 1, 2, 0, 0]


def test_the_source_table_learns_means_of_what_was_measured() -> None:
    sessions = replace(make_sessions([2, 2]), source=np.array(["sums", "sums", "prose", "prose"]))
    quality = np.array([[1.0, 0.0], [0.0, np.nan], [0.5, 1.0], [np.nan, 0.0]])
    cost_usd = np.array([[1.0, 4.0], [3.0, np.nan], [2.0, 8.0], [np.nan, 10.0]])
    table = SourceTable.fit(sessions, quality, cost_usd)
    assert table.sources == ("prose", "sums")
    assert table.quality.tolist() == [[0.5, 0.5], [0.5, 0.0]]
    assert table.cost_usd.tolist() == [[2.0, 9.0], [2.0, 4.0]]


def test_the_source_table_worked_by_hand() -> None:
    table = SourceTable(
        sources=("prose", "sums"),
        quality=np.array([[0.9, 0.8], [0.2, 0.7]]),
        cost_usd=np.array([[1.0, 5.0], [1.0, 3.0]]),
    )
    sessions = replace(make_sessions([3]), source=np.array(["prose", "sums", "verse"]))
    data = data_of(sessions)
    # Shares of 5, 4, 3, 2 and 0.5. The unseen type counts as the mean: quality 0.55 and 0.75 at 1 and 4.
    choices = [ask(table, data, 0, [0, 1, 2], [money_usd] * 3) for money_usd in (20.0, 16.0, 12.0, 8.0, 2.0)]
    assert choices == [[0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_random_model_is_the_same_for_the_same_seed_whatever_the_budget() -> None:
    sessions = make_sessions([4] * 50, num_models=3)
    data, plenty = make_replay_data(sessions), np.full(50, 10**12)
    first = replay(RandomModel(1), data, plenty)
    np.testing.assert_array_equal(first.action, replay(RandomModel(1), data, plenty).action)
    assert (first.action != replay(RandomModel(2), data, plenty).action).any()
    poor = replay(RandomModel(1), data, np.full(50, 5_000_000))
    assert poor.bankrupt.any()
    np.testing.assert_array_equal(poor.action[poor.action >= 0], first.action[poor.action >= 0])


def test_the_random_model_is_uniform() -> None:
    sessions = make_sessions([6] * 500, num_models=3)
    actions = replay(RandomModel(0), make_replay_data(sessions), np.full(500, 10**12)).action
    np.testing.assert_allclose(np.bincount(actions) / len(actions), 1 / 3, atol=0.04)


@settings(deadline=None)  # the machine may be busy
@given(random_sessions(), st.integers(1, 25_000_000), st.integers(0, 2**32 - 1), st.floats(0, 1e4))
def test_the_learned_policy_chooses_among_what_the_money_left_can_pay_for(
    sessions: Sessions, budget_nusd: int, seed: int, lambda_per_usd: float
) -> None:
    data = make_replay_data(sessions, seed)
    policy = QPolicy(make_network(data.layout, seed), penalty=1.0, lambda_per_usd=lambda_per_usd)
    result = replay(policy, data, np.full(sessions.num_sessions, budget_nusd))
    rows = np.flatnonzero(result.action >= 0)
    allowed = affordable(data.estimates.cost_high_usd[rows], to_usd(result.remaining_nusd[rows]))
    assert allowed[np.arange(len(rows)), result.action[rows]].all()


def test_a_very_high_lambda_is_the_cheapest_model_by_estimate() -> None:
    sessions = make_sessions([5] * 20, num_models=3)
    data = make_replay_data(sessions)
    result = replay(QPolicy(make_network(data.layout), 1.0, lambda_per_usd=1e9), data, np.full(20, 10**12))
    np.testing.assert_array_equal(result.action, data.estimates.cost_usd.argmin(axis=1))
