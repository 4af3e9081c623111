"""The plan behind the chances of bankruptcy, and how a state looks its own up."""

from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.risk_plan import MIN_ANSWERS, plan_risk
from seqroute_ray.core.sessions import Sessions
from tests.support import make_risk, make_sessions

REFERENCE_USD = 0.02
KIND = np.array(["sums"])


def sessions_of(cost_usd: np.ndarray, quality: np.ndarray, num_turns: int) -> Sessions:
    """Sessions of one length and type, whose answers cost and were worth what the rows [N, K] say."""
    base = make_sessions([num_turns] * (len(cost_usd) // num_turns), num_models=cost_usd.shape[1])
    cost_nusd, rows = np.round(cost_usd * 1e9).astype(np.int64), np.arange(len(cost_usd))
    return replace(
        base,
        source=np.full(len(cost_usd), "sums"),
        outcome_cost_nusd=cost_nusd,
        outcome_quality=quality.astype(np.float32),
        cost_nusd=cost_nusd[rows, base.action],
        quality=quality.astype(np.float32)[rows, base.action],
    )


def chances(table: RiskTable, turn: int, money_usd: float) -> np.ndarray:
    """[K] where the query costs what its type does."""
    found = table.at(np.ones((1, 1)), np.array([turn]), np.array([money_usd]), table.mean_cost_usd)
    return np.asarray(found[0])


def planned(cost_usd: np.ndarray, quality: np.ndarray, num_turns: int) -> RiskTable:
    table = plan_risk(sessions_of(cost_usd, quality, num_turns), KIND, REFERENCE_USD)
    assert table is not None
    return table


def test_a_case_worked_by_hand() -> None:
    """Two turns; one model costs 1 cent in one answer of four and next to nothing else, the other 1/10 cent always."""
    cost_usd = np.tile([[0.01, 0.001], [1e-7, 0.001], [1e-7, 0.001], [1e-7, 0.001]], (30, 1))
    table = planned(cost_usd, np.ones_like(cost_usd), num_turns=2)
    # With half a cent the first model breaks in a quarter of the answers; what it leaves then suffices for the other.
    np.testing.assert_allclose(chances(table, 0, 0.005), [0.25, 0.0], atol=0.005)
    np.testing.assert_allclose(chances(table, 1, 0.005), [0.25, 0.0], atol=0.005)
    # With 1/20 cent only the first can answer: a quarter breaks now, and a quarter of the rest at the last turn.
    np.testing.assert_allclose(chances(table, 0, 0.0005), [1 - 0.75**2, 1.0], atol=0.005)
    # With 1/7 cent the other pays one turn; then the first has to answer.
    np.testing.assert_allclose(chances(table, 0, 0.0014), [0.25, 0.25], atol=0.01)
    np.testing.assert_allclose(chances(table, 0, 0.04), [0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(("num_turns", "budget_usd"), [(8, 0.008), (12, 0.01), (12, 0.012), (1, 0.002)])
def test_it_says_how_often_sessions_of_one_model_break(num_turns: int, budget_usd: float) -> None:
    """A plan of one model has no choice: its chance is that of the sum of so many costs."""
    rng = np.random.default_rng(0)
    cost_usd = 0.0007 * np.exp(rng.normal(0, 0.6, size=(6000, 1)))
    table = planned(cost_usd, np.ones_like(cost_usd), num_turns)
    broke = cost_usd[rng.integers(len(cost_usd), size=(200_000, num_turns)), 0].sum(axis=1) > budget_usd
    assert chances(table, 0, budget_usd)[0] == pytest.approx(broke.mean(), abs=0.003 + 0.25 * broke.mean())


def test_sessions_that_follow_it_break_as_often_as_it_says() -> None:
    """One model is poor and cheap, the other is worth no bankruptcy: the plan takes the least chances."""
    rng, num_turns, num_sessions, budget_usd = np.random.default_rng(0), 6, 20_000, 0.012
    cost_usd = np.exp(rng.normal(np.log([0.004, 0.001]), [0.8, 0.5], size=(6000, 2)))
    table = planned(cost_usd, np.broadcast_to([0.501, 0.5], cost_usd.shape), num_turns)
    mean_usd = np.broadcast_to(table.mean_cost_usd, (num_sessions, 2))
    for first in (0, 1):
        left, alive = np.full(num_sessions, budget_usd), np.ones(num_sessions, dtype=bool)
        for turn in range(num_turns):
            chance = table.at(np.ones((num_sessions, 1)), np.full(num_sessions, turn), left, mean_usd)
            action = np.full(num_sessions, first) if turn == 0 else np.argmin(chance, axis=1)
            cost = cost_usd[rng.integers(len(cost_usd), size=num_sessions), action]
            alive &= cost <= left
            left = np.where(alive, left - cost, 0)
        assert chances(table, 0, budget_usd)[first] == pytest.approx(1 - alive.mean(), abs=0.01)


def test_money_for_every_turn_of_long_sessions_cannot_run_out() -> None:
    cost_usd = np.tile([[0.001, 0.0005]], (400, 1))
    table = planned(cost_usd, np.ones_like(cost_usd), num_turns=40)
    for money_usd in (0.045, 0.4, 10.0):
        np.testing.assert_allclose(chances(table, 0, money_usd), 0, atol=0.01)
    np.testing.assert_allclose(chances(table, 0, 0.015), 1, atol=0.01)


def test_sessions_longer_than_a_plan_have_none() -> None:
    cost_usd = np.full((400, 1), 0.001)
    assert plan_risk(sessions_of(cost_usd, np.ones_like(cost_usd), 200), KIND, REFERENCE_USD) is None


def test_answers_that_were_not_judged_are_not_worth_nothing() -> None:
    """The unjudged model's worth is that of its answers to other types: it is not shunned."""
    cost_usd, quality = np.tile([[0.001, 0.0001]], (400, 1)), np.tile([[0.9, 0.1]], (400, 1))
    sessions = sessions_of(cost_usd, quality, 4)
    kind = np.repeat(["prose", "sums"], 200)
    unjudged = np.where((kind == "sums")[:, None] & [True, False], np.nan, quality).astype(np.float32)
    sessions = replace(
        sessions, source=kind, outcome_quality=unjudged, quality=unjudged[np.arange(400), sessions.action]
    )
    table = plan_risk(sessions, np.array(["prose", "sums"]), REFERENCE_USD)
    assert table is not None
    np.testing.assert_allclose(table.chance[:, 0], table.chance[:, 1], atol=1e-6)


def test_a_query_that_costs_more_than_its_type_has_so_much_less_money() -> None:
    table = make_risk(num_models=2)
    share, turn, mean = np.array([[1.0, 0.0]]), np.array([2]), table.mean_cost_usd[:1]
    money_usd = 5 * float(mean.max())
    dearer = table.at(share, turn, np.array([money_usd]), mean + 0.001)
    np.testing.assert_allclose(dearer, table.at(share, turn, np.array([money_usd - 0.001]), mean), rtol=1e-4)


def test_at_its_own_points_the_table_is_what_it_holds_and_types_mix() -> None:
    table = make_risk(num_models=3, num_turns=4)
    money_usd = table.money_usd[[0, 7, 19]]
    for turn in (0, 3, 9):  # beyond the last turn: as the last
        for kind in (0, 1):
            share = np.eye(2)[np.full(3, kind)]
            found = table.at(share, np.full(3, turn), money_usd, np.tile(table.mean_cost_usd[kind], (3, 1)))
            np.testing.assert_allclose(found, table.chance[min(turn, 3), kind][:, [0, 7, 19]].T, rtol=1e-4, atol=1e-5)
    even = replace(table, mean_cost_usd=np.zeros_like(table.mean_cost_usd))

    def of(share: list[float]) -> np.ndarray:
        return even.at(np.array([share]), np.array([1]), money_usd[1:2], np.zeros((1, 3)))

    np.testing.assert_allclose(of([0.25, 0.75]), 0.25 * of([1, 0]) + 0.75 * of([0, 1]), rtol=1e-5)


@pytest.mark.parametrize("money_usd", [0.0, 1e9])
def test_money_beyond_the_table_is_as_at_its_ends(money_usd: float) -> None:
    table = make_risk()
    found = table.at(np.array([[0.0, 1.0]]), np.array([0]), np.array([money_usd]), table.mean_cost_usd[1:])
    np.testing.assert_allclose(found[0], table.chance[0, 1, :, -1 if money_usd else 0], rtol=1e-5)


def test_logs_that_name_no_type_have_no_plan() -> None:
    assert plan_risk(make_sessions([3] * 20), np.array([UNKNOWN_TYPE]), REFERENCE_USD) is None


def test_a_type_of_few_answers_is_planned_on_those_to_all() -> None:
    cost_usd, quality = np.full((2 * MIN_ANSWERS + 4, 1), 0.001), np.ones((2 * MIN_ANSWERS + 4, 1))
    cost_usd[:4] = 1.0
    sessions = sessions_of(cost_usd, quality, 2)
    sessions = replace(sessions, source=np.where(np.arange(len(cost_usd)) < 4, "prose", "sums"))
    table = plan_risk(sessions, np.array(["prose", "sums"]), REFERENCE_USD)
    assert table is not None
    np.testing.assert_allclose(table.mean_cost_usd[:, 0], [cost_usd.mean(), 0.001])
