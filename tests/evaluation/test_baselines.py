"""The baselines by hand, and the learned policy's mask."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.mdp import affordable
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.policy import RiskPrices
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import (
    BudgetHeuristic,
    FirstLarge,
    FixedModel,
    QPolicy,
    RandomModel,
    StaticMixture,
)
from seqroute_ray.evaluation.replay import PlannedRisk, ReplayData, Turns, replay
from tests.support import (
    ask,
    make_estimator,
    make_layout,
    make_network,
    make_replay_data,
    make_risk,
    make_sessions,
    random_sessions,
)

EXPECTED_TURNS_LEFT = (4.0, 2.0)
RISK = RiskPrices((0.1, 1.0), (4.0, 1.0))


def data_of(sessions: Sessions) -> ReplayData:
    """Replay data whose layout expects 4 turns at the first and 2 from the second on."""
    num_models = len(sessions.catalog)
    layout = replace(make_layout(num_models), expected_turns_left=EXPECTED_TURNS_LEFT)
    return ReplayData.prepare(sessions, make_estimator(num_models), layout)


def test_a_single_model_is_always_chosen() -> None:
    assert ask(FixedModel(1), data_of(make_sessions([3])), 0, [0, 1, 2], [0.0, 1.0, 9.0]) == [1, 1, 1]


def test_the_budget_heuristic_worked_by_hand() -> None:
    policy, data = BudgetHeuristic(np.array([2.0, 8.0, 4.0])), data_of(make_sessions([12], num_models=3))
    # Shares at the first turn: a quarter of 40, 32, 31, 16, 8, 7, 0; where not even 2 fits the cheapest stays.
    money_usd = [40.0, 32.0, 31.0, 16.0, 8.0, 7.0, 0.0]
    assert ask(policy, data, 0, [0] * 7, money_usd) == [1, 1, 2, 2, 0, 0, 0]
    # From the second turn on the half of it, also beyond the table's end.
    for turn in (1, 11):
        assert ask(policy, data, turn, [0] * 7, money_usd) == [1, 1, 1, 1, 2, 0, 0]


def test_the_budget_heuristic_with_slack_takes_that_much_of_the_even_split() -> None:
    policy, data = BudgetHeuristic(np.array([2.0, 8.0, 4.0]), slack=0.5), data_of(make_sessions([1], num_models=3))
    assert ask(policy, data, 0, [0] * 4, [64.0, 63.0, 32.0, 31.0]) == [1, 2, 2, 0]  # an eighth


def test_a_static_mixture_is_a_coin_between_two_models_whatever_the_turn_and_the_money() -> None:
    data = data_of(make_sessions([1] * 2000, num_models=3))
    rows, mixture = list(range(2000)), StaticMixture(cheap=0, dear=2, dear_share=0.25)
    actions = ask(mixture, data, 0, rows, [1.0] * 2000)
    assert set(actions) == {0, 2}
    assert 0.22 < np.mean(np.array(actions) == 2) < 0.28
    assert ask(mixture, data, 3, rows[::-1], [0.0] * 2000) == actions[::-1]
    assert ask(replace(mixture, seed=1), data, 0, rows, [1.0] * 2000) != actions
    assert set(ask(replace(mixture, dear_share=0.0), data, 0, rows, [1.0] * 2000)) == {0}
    assert set(ask(replace(mixture, dear_share=1.0), data, 0, rows, [1.0] * 2000)) == {2}


def test_first_large_spends_early_and_only_what_fits() -> None:
    data = data_of(make_sessions([3]))
    high_usd = data.estimates.cost_high_usd.astype(np.float64)
    cheap = int(high_usd[0].argmin())
    dear, policy = 1 - cheap, FirstLarge(cheap, 1 - cheap, num_first=2)
    assert [ask(policy, data, turn, [0], [1e9]) for turn in range(3)] == [[dear], [dear], [cheap]]
    just = float(high_usd[0, dear])
    assert ask(policy, data, 0, [0, 0], [just, just * 0.999]) == [dear, cheap]


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
    policy = QPolicy(make_network(data.layout, seed), RISK, lambda_per_usd)
    result = replay(policy, data, np.full(sessions.num_sessions, budget_nusd))
    rows = np.flatnonzero(result.action >= 0)
    allowed = affordable(
        data.estimates.cost_usd[rows], data.estimates.cost_high_usd[rows], to_usd(result.remaining_nusd[rows])
    )
    assert allowed[np.arange(len(rows)), result.action[rows]].all()


def test_the_price_of_a_bankruptcy_follows_the_budget_of_the_session_and_not_what_is_left() -> None:
    data = make_replay_data(make_sessions([1] * 200, num_models=3))
    network, risk = make_network(data.layout), RiskPrices((0.1, 1.0), (0.01, 100.0))
    rows, left_usd, reference_usd = np.arange(200), np.full(200, 0.01), data.layout.reference_cost_usd

    def actions(policy: QPolicy, budget: float) -> list[int]:
        return [int(a) for a in policy.act(data, Turns(rows, 0, left_usd, np.full(200, budget * reference_usd)))]

    poor, rich = (actions(QPolicy(network, risk), budget) for budget in (0.1, 1.0))
    assert poor == actions(QPolicy(network, RiskPrices((1.0,), (0.01,))), 0.1)
    assert rich == actions(QPolicy(network, RiskPrices((1.0,), (100.0,))), 1.0)
    assert poor != rich


def test_a_very_high_lambda_is_the_cheapest_model_by_estimate() -> None:
    sessions = make_sessions([5] * 20, num_models=3)
    data = make_replay_data(sessions)
    result = replay(QPolicy(make_network(data.layout), RISK, lambda_per_usd=1e9), data, np.full(20, 10**12))
    np.testing.assert_array_equal(result.action, data.estimates.cost_usd.argmin(axis=1))


def test_a_plan_says_what_the_head_would_unless_it_is_not_asked() -> None:
    """A plan that fears one model alone keeps the policy from it, at a price that outweighs any quality."""
    data = make_replay_data(make_sessions([5] * 40, num_models=3))
    fears = make_risk(3)
    fears = replace(fears, chance=np.zeros_like(fears.chance))
    fears.chance[:, :, 1] = 1.0
    share = np.full((len(data.sessions.action), fears.chance.shape[1]), 0.5, dtype=np.float32)
    planned = replace(data, risk=PlannedRisk(fears, share))
    network, dear, rich = make_network(data.layout), RiskPrices((1.0,), (1e6,)), np.full(40, 10**12)

    def chosen(plans: bool, among: ReplayData) -> set[int]:
        return set(replay(QPolicy(network, dear, plans=plans), among, rich).action.tolist())

    assert 1 not in chosen(True, planned)
    assert chosen(False, planned) == chosen(True, data)
