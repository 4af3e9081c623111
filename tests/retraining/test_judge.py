"""New against current policy: by replay against what is known by construction, off-policy against the replay."""

from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.policy import HEADS, Perceptron, PolicyArtefact, QNetwork
from seqroute_ray.core.pool_change import add_model, remove_model
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions
from seqroute_ray.retraining.config import GateConfig
from seqroute_ray.retraining.gate import check_judgement, check_pool
from seqroute_ray.retraining.judge import FIGURES, judge
from tests.support import make_artefact, make_catalog, make_sessions

GATE = GateConfig(budgets=(0.5, 5.0), min_sessions=50, num_replicates=200)
CURRENT = make_artefact(seed=0)


def leaning(action: int) -> PolicyArtefact:
    """A policy that takes one model wherever it can pay for it: by its estimates alone, which say that it is better."""
    flat = [[(weight * 0, bias * 0) for weight, bias in getattr(CURRENT.network, head).layers] for head in HEADS]
    quality, bankruptcy = map(Perceptron, flat)
    network = QNetwork(quality, bankruptcy, CURRENT.network.num_context)
    estimator = CURRENT.estimator
    weights = estimator.quality_weights.copy()
    weights[: len(estimator.features.types), :] = np.eye(2)[action] * 100
    return replace(CURRENT, network=network, estimator=replace(estimator, quality_weights=weights))


def good_and_bad(num_sessions: int = 400) -> Sessions:
    """Model 1 is better by 0.3 in every turn; costs are alike."""
    sessions = make_sessions([2] * num_sessions, seed=3)
    rows = np.arange(len(sessions.action))
    quality = (0.3 + 0.3 * np.arange(2) + 0.1 * sessions.outcome_quality).astype(np.float32)
    cost_nusd = np.full(quality.shape, 2_000_000)
    return replace(
        sessions,
        outcome_quality=quality,
        outcome_cost_nusd=cost_nusd,
        quality=quality[rows, sessions.action],
        cost_nusd=cost_nusd[rows, sessions.action],
        group_id=np.repeat(sessions.session_id, 2),
    )


def without_outcomes(sessions: Sessions) -> Sessions:
    return replace(
        sessions,
        outcome_quality=np.full_like(sessions.outcome_quality, np.nan),
        outcome_cost_nusd=np.full_like(sessions.outcome_cost_nusd, NOT_MEASURED_NUSD),
    )


@pytest.mark.parametrize("measured", [True, False], ids=["replay", "off-policy"])
def test_the_same_policy_differs_in_nothing(measured: bool) -> None:
    sessions = good_and_bad() if measured else without_outcomes(good_and_bad())
    judgement = judge(CURRENT, CURRENT, sessions, GATE, seed=0)
    assert judgement.method == ("replay" if measured else "off-policy")
    assert [row.figure for row in judgement.differences] == list(FIGURES) * 2
    assert {row.interval for row in judgement.differences} == {(0.0, 0.0)}
    assert all(check.passed for check in check_judgement(judgement, GATE))


@pytest.mark.parametrize("measured", [True, False], ids=["replay", "off-policy"])
def test_a_worse_policy_fails_in_quality_and_a_better_one_passes(measured: bool) -> None:
    sessions = good_and_bad() if measured else without_outcomes(good_and_bad())
    for current, new, difference in ((1, 0, -0.3), (0, 1, 0.3)):
        judgement = judge(leaning(current), leaning(new), sessions, GATE, seed=0)
        quality = judgement.differences[3]  # at the larger budget, which pays for all
        assert quality.interval[0] - 0.02 <= difference <= quality.interval[1] + 0.02
        assert quality.interval[1] - quality.interval[0] < 0.15
        failed = [check.name for check in check_judgement(judgement, GATE) if not check.passed]
        assert ("quality at 5x" in failed) == (difference < 0)


def test_off_policy_agrees_with_the_replay_of_what_it_cannot_see() -> None:
    sessions = good_and_bad(2000)
    seen, unseen = (judge(CURRENT, leaning(1), each, GATE, 0) for each in (sessions, without_outcomes(sessions)))
    for known, guessed in zip(seen.differences, unseen.differences, strict=True):
        width = guessed.interval[1] - guessed.interval[0] + 1e-9
        assert guessed.interval[0] - width <= known.new - known.current <= guessed.interval[1] + width


def test_too_few_sessions_and_too_little_support_fail_with_their_reasons() -> None:
    sessions = without_outcomes(good_and_bad(20))
    checks = {c.name: c for c in check_judgement(judge(CURRENT, leaning(1), sessions, GATE, 0), GATE)}
    assert not checks["sessions"].passed
    assert not checks["support"].passed
    assert "effective sample size" in checks["support"].why


def test_logs_without_outcomes_and_propensities_cannot_judge() -> None:
    sessions = without_outcomes(good_and_bad())
    silent = replace(sessions, propensity=np.full_like(sessions.propensity, np.nan))
    with pytest.raises(DataError, match="have no propensity"):
        judge(CURRENT, leaning(1), silent, GATE, 0)


def test_a_smaller_pool_is_judged_on_the_log_of_the_larger_one() -> None:
    smaller = remove_model(CURRENT, "model-0")
    judgement = judge(CURRENT, smaller, without_outcomes(good_and_bad()), GATE, 0)
    assert judgement.why_not == ""
    assert judgement.differences[3].new == pytest.approx(0.65, abs=0.05)


def test_a_larger_pool_that_the_log_never_tried_is_refused_where_it_is_used() -> None:
    larger = add_model(CURRENT, make_catalog(3).models[2], None)
    weights = larger.estimator.quality_weights.copy()
    weights[: len(larger.estimator.features.types), 2] = 100
    eager = replace(larger, estimator=replace(larger.estimator, quality_weights=weights))
    judgement = judge(CURRENT, eager, without_outcomes(good_and_bad()), GATE, 0)
    assert "effective sample size" in judgement.why_not
    assert judgement.differences == ()


def test_two_pools_of_which_none_holds_the_other_cannot_be_compared_without_outcomes() -> None:
    other = add_model(remove_model(CURRENT, "model-0"), make_catalog(3).models[2], None)
    with pytest.raises(DataError, match="add and remove models in two rounds"):
        judge(CURRENT, other, without_outcomes(good_and_bad()), GATE, 0)


def test_other_prices_and_another_embedder_are_no_swap() -> None:
    dearer = replace(CURRENT.catalog.models[0], usd_per_m_output=9.0)
    other = replace(
        CURRENT, embedder="another", catalog=replace(CURRENT.catalog, models=(dearer, CURRENT.catalog.models[1]))
    )
    assert [check.passed for check in check_pool(CURRENT, other, catalog_given=False)] == [False, False]
    assert [check.passed for check in check_pool(CURRENT, other, catalog_given=True)] == [True, False]
    assert [check.passed for check in check_pool(CURRENT, CURRENT, catalog_given=False)] == [True, True]
