"""The oracle against brute force over every path, and against every policy."""

from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.policy import RiskPrices
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import FixedModel, QPolicy, RandomModel
from seqroute_ray.evaluation.oracle import QUALITY_STEPS, plan_oracle, replay_oracle
from seqroute_ray.evaluation.replay import UNSERVED, Policy, ReplayResult, replay
from tests.support import make_network, make_replay_data, make_sessions, random_sessions

RISK = RiskPrices((0.1, 1.0), (4.0, 1.0))
MAX_COST = 6  # nano-dollars a turn in these sessions: small numbers give ties and tight fits


@st.composite
def small_sessions(draw: st.DrawFn, binary: bool = True) -> Sessions:
    sessions = draw(random_sessions(max_sessions=4, max_turns=4, max_models=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    quality = (sessions.outcome_quality < 0.5).astype(np.float32) if binary else sessions.outcome_quality
    return replace(
        sessions,
        outcome_quality=quality,
        outcome_cost_nusd=rng.integers(0, MAX_COST + 1, size=sessions.outcome_cost_nusd.shape),
    )


def best_by_brute_force(sessions: Sessions, s: int, budget_nusd: int) -> tuple[float, int, int]:
    """The greatest (quality, turns served, -cost) over all paths, those that stop early included."""
    first, end = int(sessions.offsets[s]), int(sessions.offsets[s + 1])
    candidates = []
    for length in range(end - first + 1):
        rows = np.arange(first, first + length)
        for path in product(range(len(sessions.catalog)), repeat=length):
            cost = int(sessions.outcome_cost_nusd[rows, list(path)].sum())
            if cost <= budget_nusd:
                candidates.append((float(sessions.outcome_quality[rows, list(path)].sum()), length, -cost))
    return max(candidates)


def outcome_of(result: ReplayResult, sessions: Sessions, s: int) -> tuple[float, int, int]:
    rows = slice(sessions.offsets[s], sessions.offsets[s + 1])
    served = int((result.action[rows] != UNSERVED).sum())
    return float(result.quality[rows].sum()), served, -int(result.cost_nusd[rows].sum())


def budgets_of(sessions: Sessions, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4 * MAX_COST, size=sessions.num_sessions)


@settings(deadline=None)  # the machine may be busy
@given(small_sessions(), st.integers(0, 2**32 - 1))
def test_the_oracle_is_the_best_of_all_paths_then_the_longest_then_the_cheapest(sessions: Sessions, seed: int) -> None:
    budget_nusd = budgets_of(sessions, seed)
    result = replay_oracle(plan_oracle(sessions), sessions, budget_nusd)
    for s in range(sessions.num_sessions):
        assert outcome_of(result, sessions, s) == best_by_brute_force(sessions, s, int(budget_nusd[s]))


@settings(deadline=None)  # the machine may be busy
@given(small_sessions(binary=False), st.integers(0, 2**32 - 1))
def test_with_graded_quality_the_oracle_loses_at_most_a_step_a_turn(sessions: Sessions, seed: int) -> None:
    budget_nusd = budgets_of(sessions, seed)
    result = replay_oracle(plan_oracle(sessions), sessions, budget_nusd)
    for s in range(sessions.num_sessions):
        best, _, _ = best_by_brute_force(sessions, s, int(budget_nusd[s]))
        quality, _, _ = outcome_of(result, sessions, s)
        assert best - int(sessions.num_turns[s]) / QUALITY_STEPS <= quality + 1e-5
        assert quality <= best + 1e-5


@settings(deadline=None)  # the machine may be busy
@given(st.booleans().flatmap(lambda binary: small_sessions(binary=binary)), st.integers(0, 2**32 - 1))
def test_the_oracle_keeps_its_books_and_never_exceeds_the_budget(sessions: Sessions, seed: int) -> None:
    budget_nusd = budgets_of(sessions, seed)
    result = replay_oracle(plan_oracle(sessions), sessions, budget_nusd)
    for s in range(sessions.num_sessions):
        remaining, ended = int(budget_nusd[s]), False
        for row in range(int(sessions.offsets[s]), int(sessions.offsets[s + 1])):
            action = int(result.action[row])
            assert int(result.remaining_nusd[row]) == remaining
            if action == UNSERVED:
                ended = True
                assert (result.cost_nusd[row], result.quality[row]) == (0, 0)
                continue
            assert not ended
            assert result.cost_nusd[row] == sessions.outcome_cost_nusd[row, action]
            assert result.quality[row] == sessions.outcome_quality[row, action]
            remaining -= int(result.cost_nusd[row])
        assert remaining >= 0
        assert bool(result.bankrupt[s]) == ended


@settings(deadline=None)  # the machine may be busy
@given(small_sessions(), st.integers(0, 2**32 - 1))
def test_no_policy_beats_the_oracle_on_any_session(sessions: Sessions, seed: int) -> None:
    data, budget_nusd = make_replay_data(sessions, seed), budgets_of(sessions, seed)
    best = replay_oracle(plan_oracle(sessions), sessions, budget_nusd)
    policies: list[Policy] = [FixedModel(action) for action in range(len(sessions.catalog))]
    policies += [RandomModel(seed), QPolicy(make_network(data.layout, seed), RISK)]
    for policy in policies:
        result = replay(policy, data, budget_nusd)
        for s in range(sessions.num_sessions):
            assert outcome_of(result, sessions, s)[0] <= outcome_of(best, sessions, s)[0]


def test_one_plan_serves_every_budget_worked_by_hand() -> None:
    sessions = make_sessions([3])
    sessions.outcome_cost_nusd[:] = [[1, 5], [1, 5], [1, 5]]
    sessions.outcome_quality[:] = [[0, 1], [1, 1], [0, 1]]
    plan = plan_oracle(sessions)
    results = {budget: replay_oracle(plan, sessions, np.array([budget])) for budget in (0, 2, 3, 7, 11)}
    assert {budget: float(result.quality.sum()) for budget, result in results.items()} == {
        0: 0,
        2: 1,
        3: 1,
        7: 2,
        11: 3,
    }
    assert results[3].action.tolist() == [0, 0, 0]
    assert results[2].action.tolist() == [0, 0, UNSERVED]
    assert results[11].action.tolist() == [1, 0, 1]
    assert [bool(result.bankrupt[0]) for result in results.values()] == [True, True, False, False, False]
