"""Figures by hand, and intervals against many data sets with a known truth."""

from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import FixedModel, RandomModel
from seqroute_ray.evaluation.metrics import (
    Measured,
    Replicates,
    interval,
    measure,
    question_replicates,
    share_by_remaining,
)
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult, replay
from tests.support import make_replay_data, make_sessions

NUM_SESSIONS, NUM_TURNS, NUM_QUESTIONS = 60, 4, 50


def served(quality: np.ndarray, sessions: Sessions) -> ReplayResult:
    """Every turn served by model 0 at a tenth of a cent."""
    zeros, never = np.zeros(len(quality), dtype=np.int64), np.zeros(len(quality), dtype=np.bool_)
    return ReplayResult(zeros, quality, zeros + 1_000_000, never[: sessions.num_sessions], never, zeros)


def question_world(seed: int) -> tuple[Sessions, np.ndarray]:
    """Sessions that share questions of two sources; quality is 0.5 plus the question's effect and little noise."""
    rng = np.random.default_rng(seed)
    sessions = make_sessions([NUM_TURNS] * NUM_SESSIONS, seed=seed)
    question = rng.integers(NUM_QUESTIONS, size=len(sessions.action))
    effect = rng.normal(scale=0.2, size=NUM_QUESTIONS)
    quality = 0.5 + effect[question] + rng.normal(scale=0.02, size=len(question))
    names = np.array([f"q{q}" for q in question])
    return replace(sessions, group_id=names, source=np.where(question % 2 == 0, "even", "odd")), quality


def width(sessions: Sessions, quality: np.ndarray) -> float:
    low, high = measure(served(quality, sessions), sessions, question_replicates(sessions, 500, 0)).quality_ci
    return high - low


def test_figures_worked_by_hand() -> None:
    sessions = make_sessions([3, 1, 2])
    result = ReplayResult(
        action=np.array([0, 1, 1, 1, 0, UNSERVED]),
        quality=np.array([1.0, 0.5, 0.0, 1.0, 0.0, 0.0], dtype=np.float32),
        cost_nusd=np.array([1_000_000, 2_000_000, 3_000_000, 6_000_000, 0, 0]),
        bankrupt=np.array([False, False, True]),
        bankrupting=np.array([False, False, False, False, True, False]),
        remaining_nusd=np.zeros(6, dtype=np.int64),
    )
    shares = np.array([1 / 3, 1 / 3, 1 / 3, 1.0, 0.5, 0.5], dtype=np.float32)
    once = Replicates(np.ones((1, 6), dtype=np.float32), shares)  # a replicate that draws everything once
    figures = measure(result, sessions, once)
    assert figures.quality == pytest.approx(2.5 / 6)  # unserved turns count 0
    assert figures.cost_usd_per_turn == pytest.approx(0.012 / 6)
    assert figures.bankruptcy_rate == pytest.approx(1 / 3)
    assert figures.quality_replicates.tolist() == pytest.approx([2.5 / 6])
    assert figures.cost_replicates.tolist() == pytest.approx([0.012 / 6])
    assert figures.bankruptcy_ci == pytest.approx((1 / 3, 1 / 3))


def test_model_shares_are_of_all_turns_when_no_session_ends_early() -> None:
    sessions = make_sessions([2, 3], num_models=3)
    actions = np.array([0, 2, 2, 2, 0])
    figures = measure(
        replace(served(np.ones(5), sessions), action=actions), sessions, question_replicates(sessions, 100, 0)
    )
    np.testing.assert_allclose(figures.model_share, [0.4, 0.0, 0.6])


def test_a_turn_counts_draws_of_its_question_times_draws_of_its_session() -> None:
    # Draws of questions a and b add to 2 in every replicate, c is alone in its source and always drawn once.
    sessions = replace(
        make_sessions([2, 1, 1]),
        group_id=np.array(["a", "c", "b", "a"]),
        source=np.array(["x", "y", "x", "x"]),
    )
    weight = question_replicates(sessions, 400, 0).weight
    of_session = weight[:, 1]  # the turn of c: draws of the first session alone
    assert set(of_session.tolist()) <= {0.0, 1.0, 2.0, 3.0}
    drawn = of_session > 0
    draws_of_a = weight[drawn, 0] / of_session[drawn]
    assert set(draws_of_a.tolist()) == {0.0, 1.0, 2.0}
    assert (draws_of_a == 1).mean() == pytest.approx(0.5, abs=0.1)
    assert weight.mean() == pytest.approx(1.0, abs=0.15)


def test_weighted_means_and_rates_worked_by_hand() -> None:
    weight = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 4.0]], dtype=np.float32)
    replicates = Replicates(weight, np.array([0.5, 0.5, 1.0], dtype=np.float32))  # two sessions, of 2 turns and of 1
    means = replicates.means(np.array([[1.0, 3.0], [2.0, 0.0], [6.0, 0.0]]))
    np.testing.assert_allclose(means, [[3.0, 1.0], [28 / 6, 0.0]], rtol=1e-6)
    assert replicates.rate(np.array([False, True, False])).tolist() == pytest.approx([1 / 2, 2 / 5])


def test_the_interval_is_the_central_one() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(values) == pytest.approx((25.0, 975.0))
    assert interval(values, level=0.5) == pytest.approx((250.0, 750.0))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    covered = []
    for seed in range(300):
        sessions, quality = question_world(seed)
        low, high = measure(served(quality, sessions), sessions, question_replicates(sessions, 200, seed)).quality_ci
        covered.append(low <= 0.5 <= high)
    assert 0.85 < np.mean(covered) < 0.99


def test_sharing_questions_gives_a_wider_interval_than_independent_turns() -> None:
    sessions, quality = question_world(0)
    independent = replace(sessions, group_id=np.arange(len(quality)).astype(np.str_))
    # 240 turns of 50 questions carry the noise of some 50 draws: sqrt(240 / 50) is 2.2.
    assert width(sessions, quality) > 1.5 * width(independent, quality)


def test_differences_between_sources_hardly_widen_the_interval() -> None:
    sessions = replace(make_sessions([4] * 50), source=np.tile(["even", "odd"], 100))
    quality = np.where(sessions.source == "even", 0.9, 0.1)
    assert width(sessions, quality) < 0.8 * width(replace(sessions, source=np.full(200, "one")), quality)


def figures_of(policy: FixedModel | RandomModel, sessions: Sessions, replicates: Replicates) -> Measured:
    budget_nusd = np.full(sessions.num_sessions, 10_000_000)
    return measure(replay(policy, make_replay_data(sessions), budget_nusd), sessions, replicates)


def test_a_policy_differs_from_itself_by_exactly_nothing_and_from_another_one_by_something() -> None:
    sessions, _ = question_world(0)
    replicates = question_replicates(sessions, 200, 0)
    ours, again, other = (
        figures_of(policy, sessions, replicates) for policy in (RandomModel(1), RandomModel(1), FixedModel(0))
    )
    assert (ours.quality_replicates - again.quality_replicates == 0).all()
    assert (ours.quality_replicates - other.quality_replicates != 0).any()


def test_the_same_seed_gives_the_same_replicates_and_another_one_others() -> None:
    sessions, _ = question_world(0)
    first, again, other = (question_replicates(sessions, 100, seed).weight for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(first.mean(axis=1), 1.0, atol=0.6)


def test_shares_by_remaining_money_worked_by_hand() -> None:
    # A reference cost of 0.01 USD; bins [0.1, 0.5) and [0.5, 2) of it; the last turn is outside, the fifth unserved.
    result = ReplayResult(
        action=np.array([0, 1, 1, 1, UNSERVED, 0]),
        quality=np.zeros(6, dtype=np.float32),
        cost_nusd=np.zeros(6, dtype=np.int64),
        bankrupt=np.zeros(1, dtype=np.bool_),
        bankrupting=np.zeros(6, dtype=np.bool_),
        remaining_nusd=np.array([1_000_000, 4_999_999, 4_000_000, 5_000_000, 5_000_000, 20_000_000]),
    )
    share, num_turns = share_by_remaining(result, 2, 0.01, np.array([0.1, 0.5, 2.0]))
    assert num_turns.tolist() == [3.0, 1.0]
    np.testing.assert_allclose(share, [[1 / 3, 2 / 3], [0.0, 1.0]])
    empty, num_turns = share_by_remaining(result, 2, 0.01, np.array([5.0, 9.0]))
    assert (empty.tolist(), num_turns.tolist()) == ([[0.0, 0.0]], [0.0])
