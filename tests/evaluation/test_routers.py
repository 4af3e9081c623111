"""The routers of single turns, by hand; what they learn, from labels whose truth is known; and the mask."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.core.mdp import affordable
from seqroute_ray.core.queries import UNKNOWN_TYPE, QueryFeatures
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import Policy, ReplayData
from seqroute_ray.evaluation.routers import BoundaryGuided, HardTurns, Myopic, Threshold
from tests.support import (
    DIMS,
    SUMMARY_WIDTH,
    TYPES,
    ask,
    make_estimates,
    make_features,
    make_foreseen,
    make_sessions,
    make_turns,
)

NO_TYPES = QueryFeatures(
    types=np.array([UNKNOWN_TYPE]),
    type_weights=np.zeros((DIMS + 1, 1), dtype=np.float32),
    log_tokens=np.array([0, np.inf], dtype=np.float32),
)


def test_the_myopic_router_worked_by_hand() -> None:
    data = make_foreseen(make_estimates([[0.25, 0.5, 1.0]], [[1, 2, 6]], [[2, 3, 8]]))
    money_usd = [8.0, 7.9, 2.9, 0.0]  # all fit, not the third, only the first, none
    rows = [0, 0, 0, 0]
    assert ask(Myopic(), data, 0, rows, money_usd) == [2, 1, 0, 0]
    assert ask(Myopic(0.2), data, 0, rows, money_usd) == [1, 1, 0, 0]  # worth 0.05, 0.1 and -0.2
    assert ask(Myopic(0.3), data, 0, rows, money_usd) == [0, 0, 0, 0]  # worth -0.05, -0.1 and -0.8


def test_where_nothing_fits_the_myopic_router_takes_the_lowest_mean_cost() -> None:
    data = make_foreseen(make_estimates([[0.5, 0.9, 0.7]], [[1, 3, 2]], [[9, 4, 8]]))
    assert ask(Myopic(), data, 0, [0, 0], [3.9, 4.0]) == [0, 1]


def test_the_threshold_router_worked_by_hand() -> None:
    quality = [[0.5, 0.0, 0.75], [0.5, 0.0, 0.625], [0.75, 0.0, 0.25]]  # the third beats the first by 1/4, 1/8, -1/2
    data = make_foreseen(make_estimates(quality, [[1, 2, 3]] * 3))
    rows, plenty, short = [0, 1, 2], [3.0] * 3, [2.9] * 3
    for threshold, expected in ((-1.0, [2, 2, 2]), (0.0, [2, 2, 0]), (0.25, [2, 0, 0]), (0.26, [0, 0, 0])):
        assert ask(Threshold(0, 2, threshold), data, 0, rows, plenty) == expected
        assert ask(Threshold(0, 2, threshold), data, 0, rows, short) == [0, 0, 0]


def foreseen_of_types(types: list[str]) -> ReplayData:
    """Turns of two models of the same quality, at 1 and 3 dollars."""
    data = make_foreseen(make_estimates([[0.5, 0.5]] * len(types), [[1, 3]] * len(types)))
    return replace(data, sessions=replace(data.sessions, source=np.array(types)))


def test_the_boundary_guided_router_worked_by_hand() -> None:
    weights = np.zeros(2 * len(TYPES) + DIMS)
    weights[: len(TYPES)] = np.log(4), np.log(1 / 4)  # chances 4/5 and 1/5
    hard, data = HardTurns(make_features(), weights), foreseen_of_types([*TYPES])
    np.testing.assert_allclose(hard.chance(data.sessions.queries), [0.8, 0.2], rtol=1e-6)
    for threshold, expected in ((0.0, [1, 1]), (0.19, [1, 1]), (0.21, [1, 0]), (0.79, [1, 0]), (0.81, [0, 0])):
        assert ask(BoundaryGuided(hard, 0, 1, threshold), data, 0, [0, 1], [3.0, 3.0]) == expected
        assert ask(BoundaryGuided(hard, 0, 1, threshold), data, 0, [0, 1], [2.9, 2.9]) == [0, 0]


WEAK, STRONG = 2, 0  # of three models; the other one is always right
KINDS = {"easy": (1, 1), "intractable": (0, 0), "hard": (0, 1), "reversed": (1, 0)}  # the weak solves, the strong


def sessions_of_kinds(num_each: int) -> Sessions:
    """Single turns, each kind in a direction of its own."""
    kind = np.arange(4 * num_each) % 4
    sessions, solved = make_sessions([1] * len(kind), num_models=3), np.array(list(KINDS.values()))[kind]
    quality = np.ones((len(kind), 3), dtype=np.float32)
    quality[:, [WEAK, STRONG]] = solved
    return replace(
        sessions,
        embedding=np.eye(4, DIMS, dtype=np.float16)[kind],
        outcome_quality=quality,
        quality=quality[np.arange(len(kind)), sessions.action],
    )


def test_hard_is_what_only_the_strong_model_solves() -> None:
    sessions = sessions_of_kinds(300)
    hard = HardTurns.fit(NO_TYPES, sessions, WEAK, STRONG, EstimatorConfig())
    chance = dict(zip(KINDS, hard.chance(sessions.queries.take(np.arange(4))).tolist(), strict=True))
    assert chance["hard"] > 0.8
    assert max(chance[kind] for kind in ("easy", "intractable", "reversed")) < 0.1


def test_a_turn_on_which_one_of_the_two_was_not_judged_teaches_nothing() -> None:
    sessions, config = sessions_of_kinds(20), EstimatorConfig()
    half = sessions.take(np.arange(40))
    sessions.outcome_quality[40:, WEAK] = np.nan
    sessions = replace(sessions, action=np.where(np.arange(80) < 40, sessions.action, STRONG))
    both, first = (HardTurns.fit(NO_TYPES, part, WEAK, STRONG, config).weights for part in (sessions, half))
    np.testing.assert_array_equal(both, first)


def test_a_question_that_sessions_reuse_teaches_once() -> None:
    sessions, config = sessions_of_kinds(20), EstimatorConfig()
    again = sessions.take(np.array([*range(80), *[2] * 50]))
    once, often = (HardTurns.fit(NO_TYPES, part, WEAK, STRONG, config).weights for part in (sessions, again))
    np.testing.assert_array_equal(once, often)


def routers(seed: int) -> list[Policy]:
    """Of two of three models; they want the strong one about half of the time."""
    weights = np.random.default_rng(seed).normal(size=2 * (SUMMARY_WIDTH - 1) + DIMS)
    return [Threshold(0, 1, 0.0), BoundaryGuided(HardTurns(make_features(seed), weights), 0, 1, 0.5)]


@settings(deadline=None, max_examples=30)  # the machine may be busy
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.05), st.floats(0, 1e3))
def test_the_routers_keep_to_what_the_money_left_can_pay_for(seed: int, money: float, price: float) -> None:
    data = make_foreseen(make_turns(20, num_models=3, seed=seed).estimates)
    rows, money_usd = np.arange(20), np.full(20, money)
    allowed = affordable(data.estimates.cost_usd, data.estimates.cost_high_usd, money_usd)
    assert allowed[rows, ask(Myopic(price), data, 0, rows, money_usd)].all()
    for router in routers(seed):
        wanted = np.array(ask(router, data, 0, rows, np.full(20, 1e9)))
        taken = ask(router, data, 0, rows, money_usd)
        np.testing.assert_array_equal(taken, np.where(allowed[:, 1], wanted, 0))


@pytest.mark.parametrize("router", range(2))
def test_the_routers_of_that_test_want_both_models(router: int) -> None:
    data = make_foreseen(make_turns(20, num_models=3).estimates)
    assert set(ask(routers(0)[router], data, 0, np.arange(20), np.full(20, 1e9))) == {0, 1}
