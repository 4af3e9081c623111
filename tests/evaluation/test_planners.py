"""Tables and plans by hand; the dynamic program against exact recursion and exhaustive search."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import ArrayLike

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.mdp import affordable
from seqroute_ray.core.money import to_nusd
from seqroute_ray.evaluation.planners import (
    MAX_PLANNED_TURNS,
    BudgetPlan,
    DynamicProgram,
    Pacing,
    TableDynamicProgram,
    TypeTable,
    TypicalTurns,
)
from seqroute_ray.evaluation.replay import ReplayData, replay
from tests.support import MEAN_COST_USD, ask, make_estimates, make_foreseen, make_turns

QUALITY = np.array([[1.0, 0.0], [0.0, np.nan], [0.5, 1.0], [np.nan, 0.0]])
COST_USD = np.array([[1.0, 4.0], [3.0, np.nan], [2.0, 8.0], [np.nan, 10.0]])
REFERENCE_USD = 10.0  # plans then know budgets from 0.001 to 30 dollars
SURE = (1.0,)  # true cost over estimated cost


def test_the_table_holds_means_and_high_quantiles_of_what_was_measured() -> None:
    table = TypeTable.fit(np.array(["sums", "sums", "prose", "prose"]), QUALITY, COST_USD, quantile=0.75)
    seen = table.estimates_of(np.array(["prose", "sums"]))
    assert table.types == ("prose", "sums")
    assert seen.quality.tolist() == [[0.5, 0.5], [0.5, 0.0]]
    assert seen.cost_usd.tolist() == [[2.0, 9.0], [2.0, 4.0]]
    assert seen.cost_high_usd.tolist() == [[2.0, 9.5], [2.5, 4.0]]


def test_a_type_never_seen_and_a_pair_never_measured_count_as_the_mean_over_all_types() -> None:
    quality = np.where(np.arange(4)[:, None] < 2, np.array([np.nan, 0.0]), QUALITY)  # no sums by the first model
    table = TypeTable.fit(np.array(["sums", "sums", "prose", "prose"]), quality, COST_USD, quantile=0.75)
    unseen = table.estimates_of(np.array(["verse"]))
    assert unseen.quality.tolist() == [[0.5, 0.25]]
    assert unseen.cost_usd.tolist() == [[2.0, np.float32(22 / 3)]]
    assert table.estimates_of(np.array(["sums"])).quality.tolist() == [[0.5, 0.0]]


def test_typical_turns_worked_by_hand() -> None:
    estimates = make_estimates(np.zeros((17, 2)), np.full((17, 2), 2.0))
    cost_usd = np.stack([2.0 * np.arange(17), np.full(17, np.nan)], axis=1)  # 0, 1 .. 16 times the estimate
    typical = TypicalTurns.of(estimates, cost_usd, np.array([1, 4, 2]))
    np.testing.assert_allclose(typical.cost_ratio, [1, 3, 5, 7, 9, 11, 13, 15])
    np.testing.assert_allclose(typical.stay_share, [2 / 3, 1 / 2, 1, 0])


def test_of_many_turns_a_sample_without_repetition_is_typical() -> None:
    turns = make_turns(MAX_PLANNED_TURNS + 100).estimates
    sample = TypicalTurns.of(turns, turns.cost_usd, np.array([1])).estimates
    assert len(np.unique(sample.quality[:, 0])) == len(sample.quality) == MAX_PLANNED_TURNS
    assert set(sample.quality[:, 0].tolist()) < set(turns.quality[:, 0].tolist())


def typical_of(estimates: Estimates, cost_ratio: ArrayLike, stay_share: ArrayLike) -> TypicalTurns:
    return TypicalTurns(estimates, np.array(cost_ratio), np.array(stay_share))


def test_pacing_worked_by_hand() -> None:
    two = make_estimates([[0.25, 1.0]], [[1, 3]])
    data = make_foreseen(two, expected_turns_left=(4.0, 2.0))
    pacing, rows = Pacing(typical_of(two, SURE, [0.0]), REFERENCE_USD), [0, 0, 0]
    assert ask(pacing, data, 0, rows, [12.0, 4.0, 0.0]) == [1, 0, 0]
    assert ask(pacing, data, 1, rows, [6.0, 2.0, 0.0]) == [1, 0, 0]
    assert ask(pacing, data, 9, rows, [6.0, 2.0, 0.0]) == [1, 0, 0]  # beyond the table's end
    assert ask(replace(pacing, slack=0.5), data, 0, rows, [24.0, 8.0, 0.0]) == [1, 0, 0]
    assert ask(replace(pacing, slack=2.0), data, 0, rows, [6.0, 2.0, 0.0]) == [1, 0, 0]


TURNS_LEFT = 1000.0  # so many that what remains pays for any single turn


def paced(slack: float = 1.0) -> tuple[Pacing, ReplayData]:
    """The pacing of random typical turns, and these turns."""
    typical = make_turns(500, num_models=3).estimates
    data = make_foreseen(typical, expected_turns_left=(TURNS_LEFT,))
    return Pacing(typical_of(typical, SURE, [0.0]), 8 * MEAN_COST_USD, slack), data


def spent_usd(pacing: Pacing, data: ReplayData, share_usd: float) -> FloatArray:
    """[N] cost of each turn, as estimated, where an even split of what remains is `share_usd`."""
    rows = np.arange(len(data.features))
    action = ask(pacing, data, 0, rows, np.full(len(rows), TURNS_LEFT * share_usd))
    return np.asarray(data.estimates.cost_usd[rows, action], dtype=np.float64)


def shares_usd(data: ReplayData, num_shares: int) -> list[float]:
    """Rising even splits, from what the cheapest models cost to what the best do."""
    estimates, rows = data.estimates, np.arange(len(data.features))
    least, most = estimates.cost_usd.min(axis=1), estimates.cost_usd[rows, estimates.quality.argmax(axis=1)]
    inner = np.linspace(least.mean(), most.mean(), num_shares + 2)[1:-1]
    return [float(share) for share in inner]


@pytest.mark.parametrize("slack", [1.0, 0.8])
def test_pacing_spends_the_even_split_on_typical_turns_and_hardly_more(slack: float) -> None:
    pacing, data = paced(slack)
    for share_usd in shares_usd(data, 8):
        spent = spent_usd(pacing, data, share_usd / slack).mean()
        assert 0.95 * share_usd < spent < 1.02 * share_usd  # prices lie on a grid


def test_pacing_saves_on_every_turn_when_money_shrinks() -> None:
    pacing, data = paced()
    before = np.full(len(data.features), np.inf)
    for share_usd in shares_usd(data, 8)[::-1]:
        spent = spent_usd(pacing, data, share_usd)
        assert (spent <= before).all()
        assert spent.mean() < before.mean()
        before = spent


def test_pacing_with_plenty_is_greedy_on_quality_among_what_fits() -> None:
    pacing, data = paced()
    best = data.estimates.quality.argmax(axis=1)
    rows = np.arange(len(best))
    assert ask(pacing, data, 0, rows, np.full(len(rows), 1e6)) == best.tolist()
    short_usd = np.full(len(rows), 2 * MEAN_COST_USD)
    allowed = affordable(data.estimates.cost_usd, data.estimates.cost_high_usd, short_usd)
    assert not allowed.all()
    assert allowed[rows, ask(replace(pacing, slack=1e6), data, 0, rows, short_usd)].all()


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_the_value_of_a_last_turn_is_the_best_model_that_fits(penalty: float) -> None:
    plan = BudgetPlan(typical_of(make_estimates([[0.25, 1.0]], [[1, 3]]), SURE, [0.0]), REFERENCE_USD, penalty)
    budget_usd = plan.budgets_usd
    np.testing.assert_array_equal(
        plan.value, [np.where(budget_usd >= 3, 1, np.where(budget_usd >= 1, 0.25, -penalty)), np.zeros(len(budget_usd))]
    )


def test_the_value_of_two_turns_worked_by_hand() -> None:
    typical = typical_of(make_estimates([[0.25, 1.0]], [[1, 3]]), SURE, [0.5, 0.0])  # half of the sessions go on
    value = BudgetPlan(typical, REFERENCE_USD, penalty=0.5).value[0]
    budgets_usd = BudgetPlan(typical, REFERENCE_USD).budgets_usd
    # Too poor for one; cheap, then bankrupt; cheap twice; dear, then bankrupt; dear, cheap; dear twice.
    by_hand = {0.5: -0.5, 1.5: 0.25 - 0.25, 2.5: 0.25 + 0.125, 3.5: 1 - 0.25, 4.5: 1 + 0.125, 7.5: 1 + 0.5}
    assert np.interp(list(by_hand), budgets_usd, value) == pytest.approx(list(by_hand.values()), abs=1e-6)


def exact_value(plan: BudgetPlan, turn: int, budget_usd: float) -> float:
    """BudgetPlan.value by recursion, without a grid of budgets."""
    if turn == len(plan.typical.stay_share):
        return 0.0
    estimates, best = plan.typical.estimates, []
    for row in range(len(estimates.quality)):
        allowed = affordable(estimates.cost_usd[[row]], estimates.cost_high_usd[[row]], np.array([budget_usd]))[0]
        best.append(max(exact_q(plan, turn, budget_usd, row, int(action)) for action in np.flatnonzero(allowed)))
    return float(np.mean(best))


def exact_q(plan: BudgetPlan, turn: int, budget_usd: float, row: int, action: int) -> float:
    """Of one typical turn and model."""
    estimates, outcomes = plan.typical.estimates, []
    for ratio in plan.typical.cost_ratio:
        after = budget_usd - float(estimates.cost_usd[row, action] * ratio)
        to_come = plan.typical.stay_share[turn] * exact_value(plan, turn + 1, after) if after >= 0 else 0.0
        outcomes.append(float(estimates.quality[row, action]) + to_come if after >= 0 else -plan.penalty)
    return float(np.mean(outcomes))


@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_plan_agrees_with_exact_recursion(penalty: float, turn: int) -> None:
    # Of whole dollars: at half dollars no change of value lies between two budgets of the grid.
    estimates = make_estimates([[0.3, 0.6, 0.9], [0.5, 0.2, 1.0]], [[2, 2, 4], [2, 4, 4]], [[2, 3, 6], [3, 6, 5]])
    plan = BudgetPlan(typical_of(estimates, [0.5, 1.5], [0.75, 0.5, 0.0]), REFERENCE_USD, penalty)
    for budget_usd in np.arange(0.5, 6):
        ours = plan.q_values(estimates, np.full(2, budget_usd), turn)
        exact = [[exact_q(plan, turn, float(budget_usd), row, action) for action in range(3)] for row in range(2)]
        np.testing.assert_allclose(ours, exact, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_more_money_is_never_worth_less(seed: int, penalty: float) -> None:
    turns = make_turns(15, num_models=3, seed=seed).estimates
    typical = typical_of(turns, np.geomspace(0.2, 5, 8), [0.9, 0.6, 0.3, 0.0])
    value = BudgetPlan(typical, 8 * MEAN_COST_USD, penalty).value
    assert (np.diff(value[:-1], axis=1) >= -1e-9).all()
    assert (value[:-1, -1] > value[:-1, 0] + 0.1).all()
    assert (value[-1] == 0).all()


def test_a_penalty_turns_the_choice_from_the_risky_model_to_the_safe_one() -> None:
    # With 2 dollars left, the dear model costs 1 or 3: it is worth 1/2 - penalty/2, the safe one 2/5.
    two = make_estimates([[0.4, 1.0]], [[1, 2]])
    data, typical = make_foreseen(two), typical_of(two, [0.5, 1.5], [0.0])
    programs = [DynamicProgram(BudgetPlan(typical, REFERENCE_USD, penalty)) for penalty in (0.0, 0.19, 0.21, 5.0)]
    assert [ask(program, data, 0, [0, 0], [2.0, 3.5]) for program in programs] == [[1, 1], [1, 1], [0, 1], [0, 1]]


def test_the_dynamic_program_keeps_to_what_the_money_left_can_pay_for() -> None:
    two = make_estimates([[0.25, 1.0]], [[1, 2]], [[1, 5]])
    program = DynamicProgram(BudgetPlan(typical_of(two, SURE, [0.0]), REFERENCE_USD))
    assert ask(program, make_foreseen(two), 0, [0, 0, 0], [5.0, 4.9, 0.5]) == [1, 0, 0]


def test_the_dynamic_program_equals_exhaustive_search_where_all_is_known() -> None:
    quality, cost_usd, budgets_usd = [0.2, 0.5, 0.9], [1, 2, 4], np.arange(0.5, 12)
    num_turns = 3 * len(budgets_usd)
    turns = make_estimates(np.tile(quality, (num_turns, 1)), np.tile(cost_usd, (num_turns, 1)))
    typical = typical_of(turns.take(np.arange(1)), SURE, [1.0, 1.0, 0.0])
    data = make_foreseen(turns, lengths=[3] * len(budgets_usd))
    result = replay(DynamicProgram(BudgetPlan(typical, REFERENCE_USD)), data, to_nusd(budgets_usd))
    np.testing.assert_allclose(
        result.quality.reshape(-1, 3).sum(axis=1),
        [best_path(quality, cost_usd, float(budget_usd)) for budget_usd in budgets_usd],
        rtol=1e-6,
    )


def best_path(quality: Sequence[float], cost_usd: Sequence[float], budget_usd: float) -> float:
    """Most total quality of three turns; a path ends at the first turn that it cannot pay."""
    paths = product(range(len(quality)), repeat=3)
    return max(
        sum(quality[a] for i, a in enumerate(path) if paid(cost_usd, path[: i + 1], budget_usd)) for path in paths
    )


def paid(cost_usd: Sequence[float], path: Sequence[int], budget_usd: float) -> bool:
    return sum(cost_usd[a] for a in path) <= budget_usd


def test_the_program_on_types_goes_by_the_type_and_not_by_the_estimates() -> None:
    of_types = make_estimates([[1.0, 0.5], [0.0, 0.75], [0.5, 0.625]], [[1, 3]] * 3)
    table = TypeTable(("prose", "sums"), of_types)
    data = make_foreseen(make_estimates([[0.5, 0.625], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1, 3]] * 4))
    data = replace(data, sessions=replace(data.sessions, source=np.array(["prose", "sums", "verse", "prose"])))
    program = TableDynamicProgram(BudgetPlan(typical_of(of_types, SURE, [0.0]), REFERENCE_USD), table)
    assert ask(program, data, 0, range(4), [3.5] * 4) == [0, 1, 1, 0]
    assert ask(program, data, 0, range(4), [2.5] * 4) == [0, 0, 0, 0]  # by the table's costs
    assert ask(DynamicProgram(program.plan), data, 0, range(4), [3.5] * 4) == [1, 0, 0, 1]
