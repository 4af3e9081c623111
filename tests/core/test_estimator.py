"""Outcome estimates against synthetic data whose truth is known."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqroute_ray.core.embedding import unit_rows
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.estimator import (
    MIN_ROWS_PER_MODEL,
    EstimatorConfig,
    Observations,
    OutcomeEstimator,
    cross_fitted_estimates,
    fit_estimator,
    fold_of,
    observe,
)
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions
from tests.support import make_estimator, make_sessions

NAMES = ("small", "large")
QUALITY_SLOPES = np.array([[3.0, -1.0], [-2.0, 2.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])  # [D, K]
QUALITY_INTERCEPTS = np.array([-0.5, 1.0])
COST_SLOPES = np.array([[0.5, 0.0], [0.0, -0.7], [0.3, 0.3], [0.0, 0.0], [0.0, 0.0], [0.4, 0.0]])
COST_INTERCEPTS = np.log([0.0002, 0.003])
SPREAD_SLOPES = np.array([[0.0, 0.0], [1.2, 0.0], [0.0, 0.0], [0.0, 1.2], [0.0, 0.0], [0.0, 0.0]])
SPREAD_INTERCEPT = np.log(0.3)


class World(NamedTuple):
    """Queries, their true laws, and one draw from them; [N, K] but the embedding."""

    embedding: NDArray[np.float32]
    probability: NDArray[np.float64]
    log_cost_mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    quality: NDArray[np.float64]
    log_cost: NDArray[np.float64]

    def observations(self) -> Observations:
        return Observations(self.embedding, self.quality, self.log_cost, np.arange(len(self.quality)).astype(np.str_))


@cache
def world(num_queries: int = 6000, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    embedding = unit_rows(rng.normal(size=(num_queries, len(QUALITY_SLOPES))))
    probability = 1 / (1 + np.exp(-(embedding @ QUALITY_SLOPES + QUALITY_INTERCEPTS)))
    log_cost_mean = embedding @ COST_SLOPES + COST_INTERCEPTS
    deviation = np.exp(embedding @ SPREAD_SLOPES + SPREAD_INTERCEPT)
    quality = (rng.random(probability.shape) < probability).astype(np.float64)
    log_cost = log_cost_mean + deviation * rng.normal(size=probability.shape)
    return World(embedding, probability, log_cost_mean, deviation, quality, log_cost)


@cache
def fitted() -> OutcomeEstimator:
    return fit_estimator(world().observations(), EstimatorConfig(), NAMES)


def log_loss(probability: NDArray[np.floating], quality: NDArray[np.floating]) -> NDArray[np.floating]:
    """[K]"""
    likelihood = np.where(quality == 1, probability, 1 - probability)
    return np.asarray(-np.log(likelihood).mean(axis=0))


def test_quality_comes_close_to_the_known_logistic_law() -> None:
    fresh = world(seed=1)
    error = fitted().predict(fresh.embedding).quality - fresh.probability
    assert np.abs(error).mean() < 0.02
    assert np.abs(error).max() < 0.1


def test_quality_beats_the_mean_of_each_model_in_log_loss() -> None:
    fresh = world(seed=1)
    mean = np.broadcast_to(world().quality.mean(axis=0), fresh.quality.shape)
    ours = log_loss(fitted().predict(fresh.embedding).quality, fresh.quality)
    best = log_loss(fresh.probability, fresh.quality)
    assert (ours < log_loss(mean, fresh.quality) - 0.05).all()
    assert (ours < best + 0.005).all()


def test_the_mean_cost_comes_close_to_the_law_where_the_spread_is_the_same_for_all() -> None:
    # E[exp(m + s z)] = exp(m + s^2 / 2) for a normal z.
    train, fresh = world(), world(seed=1)
    even_cost = train.log_cost_mean + 0.4 * (train.log_cost - train.log_cost_mean) / train.deviation
    estimator = fit_estimator(replace(train.observations(), log_cost=even_cost), EstimatorConfig(), NAMES)
    truth_usd = np.exp(fresh.log_cost_mean + 0.4**2 / 2)
    ratio = estimator.predict(fresh.embedding).cost_usd / truth_usd
    assert 0.9 < ratio.min() < ratio.max() < 1.1


@pytest.mark.parametrize("quantile", [0.8, 0.95])
def test_the_high_quantile_covers_its_share_of_easy_and_of_runaway_queries(quantile: float) -> None:
    estimator = fit_estimator(world().observations(), EstimatorConfig(cost_quantile=quantile), NAMES)
    fresh = world(seed=2)
    covered = np.exp(fresh.log_cost) <= estimator.predict(fresh.embedding).cost_high_usd
    np.testing.assert_allclose(covered.mean(axis=0), quantile, atol=0.015)
    wide = fresh.deviation > np.median(fresh.deviation, axis=0)
    for k in range(len(NAMES)):
        for queries in (wide[:, k], ~wide[:, k]):
            assert covered[queries, k].mean() == pytest.approx(quantile, abs=0.03)


def coverage_after_few_observations(seed: int, num_rows: int = 300, num_dims: int = 64) -> float:
    """Share of fresh queries below the high quantile of an estimator fitted on few rows."""
    rng = np.random.default_rng(seed)
    embedding = unit_rows(rng.normal(size=(num_rows + 5000, num_dims)))
    log_cost = -6 + embedding[:, :1] + 0.3 * rng.normal(size=(len(embedding), 1))
    quality = rng.integers(0, 2, size=(num_rows, 1)).astype(np.float64)
    names = np.arange(num_rows).astype(np.str_)
    seen = Observations(embedding[:num_rows], quality, log_cost[:num_rows], names)
    high_usd = fit_estimator(seen, EstimatorConfig(), ("m",)).predict(embedding[num_rows:]).cost_high_usd
    return float(np.mean(np.exp(log_cost[num_rows:]) <= high_usd))


def test_the_high_quantile_covers_fresh_queries_also_after_few_observations_of_many_numbers() -> None:
    # In-sample residuals of 65 weights on 300 rows would cover 89 % only.
    assert 0.91 < np.mean([coverage_after_few_observations(seed) for seed in range(6)]) < 0.97


def with_other_outcomes(sessions: Sessions, rows: NDArray[np.bool_]) -> Sessions:
    """The sessions with the opposite quality and ten times the cost at `rows`."""
    mask = rows[:, None]
    return replace(
        sessions,
        quality=np.where(rows, 1 - sessions.quality, sessions.quality),
        cost_nusd=np.where(rows, 10 * sessions.cost_nusd, sessions.cost_nusd),
        outcome_quality=np.where(mask, 1 - sessions.outcome_quality, sessions.outcome_quality),
        outcome_cost_nusd=np.where(mask, 10 * sessions.outcome_cost_nusd, sessions.outcome_cost_nusd),
    )


def reused_questions(num_sessions: int = 30, num_questions: int = 60) -> Sessions:
    """Sessions of 4 turns over few questions, each with one vector and one outcome."""
    sessions = make_sessions([4] * num_sessions)
    question = np.random.default_rng(1).integers(num_questions, size=len(sessions.action))
    rows = np.arange(len(question))
    outcome_quality, outcome_cost = sessions.outcome_quality[question], sessions.outcome_cost_nusd[question]
    return replace(
        sessions,
        embedding=sessions.embedding[question],
        group_id=np.array([f"q{q}" for q in question]),
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost,
        quality=outcome_quality[rows, sessions.action],
        cost_nusd=outcome_cost[rows, sessions.action],
    )


@pytest.mark.parametrize("group", ["q3", "q27", "q45"])
def test_a_groups_own_outcomes_do_not_influence_its_own_estimates(group: str) -> None:
    sessions, config = reused_questions(), EstimatorConfig(num_folds=3)
    own = sessions.group_id == group
    assert own.sum() >= 2
    before = cross_fitted_estimates(sessions, config)
    after = cross_fitted_estimates(with_other_outcomes(sessions, own), config)
    other_fold = fold_of(sessions.group_id, 3) != fold_of(np.array([group]), 3)[0]
    for name in ("quality", "cost_usd", "cost_high_usd"):
        ours, theirs = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(ours[own], theirs[own], err_msg=name)
        assert (ours[other_fold] != theirs[other_fold]).any(axis=1).all(), name


@given(st.lists(st.text(max_size=6), min_size=1, max_size=20), st.integers(2, 7), st.data())
def test_the_fold_of_a_group_does_not_depend_on_other_groups(
    groups: list[str], num_folds: int, data: st.DataObject
) -> None:
    names = np.array([group.replace("\0", "") for group in groups], dtype=np.str_)
    folds = fold_of(names, num_folds)
    some = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1))
    np.testing.assert_array_equal(fold_of(names[some], num_folds), folds[some])
    assert ((folds >= 0) & (folds < num_folds)).all()


def test_folds_are_of_about_equal_size() -> None:
    sizes = np.bincount(fold_of(np.arange(5000).astype(np.str_), 5), minlength=5)
    assert (np.abs(sizes - 1000) < 5 * np.sqrt(1000 * 0.8)).all()


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 29), max_size=40))
def test_a_question_that_sessions_reuse_counts_once(repeated: list[int]) -> None:
    sessions = reused_questions()
    once = observe(sessions)
    again = observe(sessions.take(np.array([*range(30), *repeated])))
    assert len(once.quality) == len(np.unique(sessions.group_id)) == len(set(once.fold_key.tolist()))
    np.testing.assert_array_equal(again.fold_key, once.fold_key)
    np.testing.assert_array_equal(again.embedding, once.embedding)
    np.testing.assert_allclose(again.quality, once.quality, rtol=1e-12)
    np.testing.assert_allclose(again.log_cost, once.log_cost, rtol=1e-12)


def test_observations_worked_by_hand() -> None:
    sessions = make_sessions([2, 2])  # turns 0 and 2 ask one question, turn 3 asks it in other words
    sessions.embedding[2] = sessions.embedding[0]
    nothing = np.full((4, 2), NOT_MEASURED_NUSD)
    seen = observe(
        replace(
            sessions,
            group_id=np.array(["a", "b", "a", "a"]),
            action=np.array([0, 0, 0, 1]),
            quality=np.array([1.0, np.nan, 0.0, 0.5], dtype=np.float32),
            cost_nusd=np.array([1_000_000, 0, 4_000_000, 3_000_000]),
            outcome_quality=np.full((4, 2), np.nan, dtype=np.float32),
            outcome_cost_nusd=nothing,
        )
    )
    assert seen.fold_key.tolist() == ["a", "a", "b"]
    asked, other, b = (
        int(np.flatnonzero((seen.embedding == sessions.embedding[row]).all(axis=1))[0]) for row in (0, 3, 1)
    )
    nan = np.nan
    np.testing.assert_array_equal(seen.quality[[asked, other, b]], [[0.5, nan], [nan, 0.5], [nan, nan]])
    cost_usd = np.exp(seen.log_cost[[asked, other, b]])
    np.testing.assert_allclose(cost_usd, [[0.002, nan], [nan, 0.003], [1e-9, nan]])  # geometric mean; free


def test_measured_outcomes_of_other_models_are_observed() -> None:
    sessions = make_sessions([5])
    seen = observe(sessions)
    order = np.argsort(sessions.group_id)
    np.testing.assert_array_equal(seen.fold_key, sessions.group_id[order])
    np.testing.assert_allclose(seen.quality, sessions.outcome_quality[order])
    np.testing.assert_allclose(np.exp(seen.log_cost), to_usd(sessions.outcome_cost_nusd[order]))


def test_too_few_observations_name_the_model_and_how_many_it_has() -> None:
    seen = Observations(*(column[:40] for column in world().observations().__dict__.values()))
    seen.quality[MIN_ROWS_PER_MODEL - 1 :, 1] = np.nan
    with pytest.raises(DataError, match=r"each model needs 20 judged queries .* too few: large \(19\)$"):
        fit_estimator(seen, EstimatorConfig(), NAMES)


def test_a_model_that_is_always_right_or_always_wrong_still_gets_finite_estimates() -> None:
    seen = Observations(*(column[:200] for column in world().observations().__dict__.values()))
    certain = replace(seen, quality=np.broadcast_to([0.0, 1.0], seen.quality.shape))
    quality = fit_estimator(certain, EstimatorConfig(), NAMES).predict(world(seed=1).embedding).quality
    assert (quality[:, 0] < 0.05).all()
    assert (quality[:, 1] > 0.95).all()


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (4,), (1, 4, 1)])
def test_an_embedding_of_another_dimension_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="the estimator was fitted on 4-d embeddings, got shape"):
        make_estimator().predict(np.zeros(shape))


@given(st.integers(1, 4), st.integers(0, 100))
def test_an_estimator_survives_the_way_to_arrays_and_back(num_models: int, seed: int) -> None:
    estimator = make_estimator(num_models, seed)
    again = OutcomeEstimator.from_arrays(estimator.arrays())
    query = np.random.default_rng(seed).normal(size=(5, 4))
    for name, values in vars(estimator.predict(query)).items():
        np.testing.assert_array_equal(getattr(again.predict(query), name), values, err_msg=name)


def test_a_prediction_worked_by_hand() -> None:
    one = np.array([[1.0], [0.0]], dtype=np.float32)  # slope 1, intercept 0 on a 1-d embedding
    shift, deviations = np.array([0.5], dtype=np.float32), np.array([3.0], dtype=np.float32)
    estimator = OutcomeEstimator(one, -2 * one, -one, shift, deviations)
    estimates = estimator.predict(np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(estimates.quality[:, 0], [0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
    np.testing.assert_allclose(estimates.cost_usd[:, 0], np.exp([0.5, -1.5]), rtol=1e-6)
    np.testing.assert_allclose(estimates.cost_high_usd[:, 0], np.exp([3.0, -2 + 3 * np.exp(-1)]), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quality_penalty": 0.0}, "penalties must be > 0, got 0.0 and 3.0"),
        ({"cost_penalty": -1.0}, "penalties must be > 0, got 1.0 and -1.0"),
        ({"num_folds": 1}, "num_folds must be at least 2, got 1"),
        ({"cost_quantile": 0.4}, r"cost_quantile must be in \[0.5, 1\), got 0.4"),
        ({"cost_quantile": 1.0}, r"cost_quantile must be in \[0.5, 1\), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EstimatorConfig(**fields)
