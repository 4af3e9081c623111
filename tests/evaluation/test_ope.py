"""Off-policy answers: intervals that hold a known truth, and refusals where a log cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.mdp import TurnFeatures
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.ope import Estimate, OffPolicy, Refusal
from seqroute_ray.evaluation.ope_log import LoggedPaths
from tests.evaluation.ope_support import BUDGET_UNITS, UNIT_NUSD, acting, cut, draw_log, exact_value, thrifty_target
from tests.support import SUMMARY_WIDTH, make_layout, make_sessions

ESTIMATORS = ["per_decision", "weighted_per_decision", "doubly_robust"]


def off_policy(paths: LoggedPaths, target: FloatArray, **settings: float | str | bool) -> OffPolicy:
    num_turns = len(target)
    flat = [np.full((num_turns, 2), value, dtype=np.float32) for value in (0.6, 2e-6, 4e-6, 0.0, 4e-6)]
    features = TurnFeatures(Estimates(*flat), np.zeros((num_turns, SUMMARY_WIDTH), dtype=np.float32))
    layout = replace(make_layout(), reference_cost_usd=6e-6)
    return OffPolicy.of(paths, target, layout, features, **settings)  # type: ignore[arg-type]


def on_world(sessions: Sessions, **settings: float | str | bool) -> list[Estimate | Refusal]:
    paths = cut(sessions, BUDGET_UNITS * UNIT_NUSD)
    return off_policy(paths, thrifty_target(paths), per="session", **settings).answers()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, truth = np.random.default_rng(0), exact_value()
    answers = [on_world(draw_log(250, rng)) for _ in range(100)]
    assert all(answer.concluded for three in answers for answer in three)
    for which, name in enumerate(ESTIMATORS):
        ours = [three[which] for three in answers]
        assert {answer.estimator for answer in ours} == {name}
        held = [isinstance(a, Estimate) and a.interval[0] <= truth <= a.interval[1] for a in ours]
        assert 0.89 <= np.mean(held) <= 0.99


def test_the_difference_to_the_logger_is_paired_and_on_the_same_budget() -> None:
    paths = cut(draw_log(2000, np.random.default_rng(1)), BUDGET_UNITS * UNIT_NUSD)
    earned = float(paths.reward.sum() / 2000)
    logger = np.tile([0.4, 0.6], (6000, 1))
    for answer in off_policy(paths, logger, per="session").answers()[:2]:
        assert isinstance(answer, Estimate)
        assert answer.value == pytest.approx(earned, abs=1e-5)
        assert answer.difference_interval == pytest.approx((0.0, 0.0), abs=1e-4)
    thrifty_answer = on_world(draw_log(2000, np.random.default_rng(1)))[1]
    assert isinstance(thrifty_answer, Estimate)
    assert thrifty_answer.difference == pytest.approx(thrifty_answer.value - earned, abs=1e-9)
    low, high = thrifty_answer.difference_interval
    assert low < thrifty_answer.difference < high


def test_too_small_an_effective_sample_is_a_refusal_without_a_number() -> None:
    answers = on_world(draw_log(40, np.random.default_rng(0)))
    for answer in answers:
        assert isinstance(answer, Refusal)
        assert not answer.concluded
        assert not hasattr(answer, "value")
        assert f"effective sample size {answer.effective_sample_size:.1f} of 40 sessions is below 50" in answer.why
    assert all(answer.concluded for answer in on_world(draw_log(120, np.random.default_rng(0)), min_ess=10.0))


def test_a_target_that_the_logger_never_imitates_is_refused_by_its_mean_weight() -> None:
    sessions = make_sessions([1] * 2000)
    sessions = replace(sessions, cost_nusd=np.ones(2000, dtype=np.int64))
    rng = np.random.default_rng(0)
    # The logger takes model 0 alone on odd turns, though it wrote a propensity of 0.5 there; the target takes both.
    action = np.where(np.arange(2000) % 2 == 0, rng.integers(2, size=2000), 0)
    sessions = acting(sessions, action, 0.5)
    target = np.tile([0.2, 0.8], (2000, 1))
    (answer, *_) = off_policy(cut(sessions, 10**9), target).answers()
    assert isinstance(answer, Refusal)
    assert "mean weight is 0.7" in answer.why


def test_a_model_or_position_that_was_never_judged_is_refused() -> None:
    sessions = draw_log(400, np.random.default_rng(0))
    quality = np.where(sessions.action == 1, np.nan, sessions.quality).astype(np.float32)
    paths = cut(replace(sessions, quality=quality), 10**9)
    (answer, *_) = off_policy(paths, np.tile([0.5, 0.5], (1200, 1)), min_ess=10.0).answers()
    assert isinstance(answer, Refusal)
    assert "model-1 was never judged" in answer.why
    first_only = np.where(sessions.turn > 0, np.nan, sessions.quality).astype(np.float32)
    paths = cut(replace(sessions, quality=first_only), 10**9)
    (answer, *_) = off_policy(paths, np.tile([0.5, 0.5], (1200, 1)), min_ess=10.0).answers()
    assert isinstance(answer, Refusal)
    assert "turn 1 of the sessions was never judged" in answer.why
    none = replace(sessions, quality=np.full_like(quality, np.nan))
    with pytest.raises(DataError, match="no turn that the budget pays for has a quality"):
        off_policy(cut(none, 10**9), np.tile([0.5, 0.5], (1200, 1)))


def test_judgements_that_are_missing_at_random_leave_the_truth_in_the_interval() -> None:
    rng, truth = np.random.default_rng(3), exact_value()
    held = np.zeros(3)
    for _ in range(40):
        sessions = draw_log(400, rng)
        chance = np.where(sessions.action == 1, 0.4, 0.9)  # a good model is judged less often
        judged = rng.random(len(chance)) < chance
        answers = on_world(replace(sessions, quality=np.where(judged, sessions.quality, np.nan).astype(np.float32)))
        held += [isinstance(a, Estimate) and a.interval[0] <= truth <= a.interval[1] for a in answers]
    assert (held >= 0.85 * 40).all()
