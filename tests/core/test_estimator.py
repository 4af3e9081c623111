"""Outcome estimates against synthetic data whose truth is known."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.embedding import unit_rows
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.fitting import (
    MIN_ROWS_PER_MODEL,
    EstimatorConfig,
    Observations,
    cross_fit,
    cross_fitted,
    fit_estimator,
    fold_of,
    observe,
)
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.queries import UNKNOWN_TYPE, Queries, QueryFeatures
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions
from tests.support import TYPES, make_catalog, make_estimator, make_queries, make_sessions

CATALOG = Catalog(
    (
        ModelSpec(name="small", usd_per_m_input=1.0, usd_per_m_output=2.0),
        ModelSpec(name="large", usd_per_m_input=5.0, usd_per_m_output=20.0),
    )
)
DOLLAR_A_TOKEN = Catalog((ModelSpec(name="m", usd_per_m_input=0.0, usd_per_m_output=1e6),))
# Of the world below, by type of task and embedding [., K].
QUALITY_LEVELS, QUALITY_LENGTHS = np.array([[1.5, 2.0], [-1.5, 0.5]]), np.array([[-0.5, 0.0], [0.3, -0.6]])
TOKEN_LEVELS, TOKEN_LENGTHS = np.log([[60.0, 90.0], [400.0, 600.0]]), np.array([[0.6, 0.5], [0.0, 0.2]])
QUALITY_SLOPES = np.array([[0.0, 0.0], [-2.0, 2.0], [0.0, 3.0], [1.0, 0.0]])
TOKEN_SLOPES = np.array([[0.0, 0.0], [0.0, -0.7], [0.3, 0.3], [0.0, 0.0]])
SPREAD_SLOPES = np.array([[0.0, 0.0], [1.2, 0.0], [0.0, 0.0], [0.0, 1.2]])
SPREAD_LEVEL = np.log(0.3)
LENGTH_MEAN = 5.0


class World(NamedTuple):
    """Queries, their true laws, and one draw from them; [N, K] but the queries."""

    queries: Queries
    probability: NDArray[np.float64]
    log_tokens_mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    quality: NDArray[np.float64]
    log_tokens: NDArray[np.float64]

    def observations(self) -> Observations:
        return Observations(self.queries, self.quality, self.log_tokens, np.arange(len(self.quality)).astype(np.str_))

    def cost_usd(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, K] price of the prompts and of answers of so many tokens."""
        price_in, price_out = CATALOG.usd_per_token()
        return np.asarray(self.queries.prompt_tokens[:, None] * price_in + price_out * tokens)


@cache
def world(num_queries: int = 6000, seed: int = 0) -> World:
    """Two types of task; the first number of an embedding tells them apart, the others matter within a type."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=num_queries)
    drawn = rng.normal(size=(num_queries, len(QUALITY_SLOPES)))
    drawn[:, 0] = 4 * kind - 2 + 0.5 * drawn[:, 0]
    embedding = unit_rows(drawn)
    length = rng.uniform(-1.5, 1.5, size=num_queries)
    prompt_tokens = np.rint(np.exp(LENGTH_MEAN + length)).astype(np.int64)
    length = (np.log(prompt_tokens) - LENGTH_MEAN)[:, None]
    logit = QUALITY_LEVELS[kind] + QUALITY_LENGTHS[kind] * length + embedding @ QUALITY_SLOPES
    log_tokens_mean = TOKEN_LEVELS[kind] + TOKEN_LENGTHS[kind] * length + embedding @ TOKEN_SLOPES
    deviation = np.exp(embedding @ SPREAD_SLOPES + SPREAD_LEVEL)
    probability = 1 / (1 + np.exp(-logit))
    quality = (rng.random(probability.shape) < probability).astype(np.float64)
    log_tokens = log_tokens_mean + deviation * rng.normal(size=probability.shape)
    queries = Queries(embedding, np.array(TYPES)[kind], prompt_tokens)
    return World(queries, probability, log_tokens_mean, deviation, quality, log_tokens)


@cache
def fitted() -> OutcomeEstimator:
    return fit_estimator(world().observations(), EstimatorConfig(), CATALOG.names)


def log_loss(probability: NDArray[np.floating], quality: NDArray[np.floating]) -> NDArray[np.floating]:
    """[K]"""
    likelihood = np.where(quality == 1, probability, 1 - probability)
    return np.asarray(-np.log(likelihood).mean(axis=0))


def test_quality_comes_close_to_the_known_logistic_law() -> None:
    fresh = world(seed=1)
    error = fitted().predict(fresh.queries, CATALOG).quality - fresh.probability
    assert np.abs(error).mean() < 0.02
    assert np.abs(error).max() < 0.1


def test_quality_beats_the_mean_of_each_model_in_log_loss() -> None:
    fresh = world(seed=1)
    mean = np.broadcast_to(world().quality.mean(axis=0), fresh.quality.shape)
    ours = log_loss(fitted().predict(fresh.queries, CATALOG).quality, fresh.quality)
    best = log_loss(fresh.probability, fresh.quality)
    assert (ours < log_loss(mean, fresh.quality) - 0.05).all()
    assert (ours < best + 0.005).all()


def test_a_query_without_a_type_or_a_length_is_estimated_from_its_embedding() -> None:
    fresh = world(seed=1)
    anonymous = replace(fresh.queries, task_type=np.full(len(fresh.queries), UNKNOWN_TYPE))
    named, unnamed = (fitted().predict(queries, CATALOG).quality for queries in (fresh.queries, anonymous))
    assert np.abs(named - unnamed).mean() < 0.02  # the embedding tells the types apart
    bare = replace(anonymous, prompt_tokens=np.zeros(len(fresh.queries), dtype=np.int64))
    ours = log_loss(fitted().predict(bare, CATALOG).quality, fresh.quality)
    mean = np.broadcast_to(world().quality.mean(axis=0), fresh.quality.shape)
    assert (ours < log_loss(mean, fresh.quality) - 0.05).all()


def test_the_mean_cost_comes_close_to_the_law_where_the_spread_is_the_same_for_all() -> None:
    # E[exp(m + s z)] = exp(m + s^2 / 2) for a normal z.
    train, fresh = world(), world(seed=1)
    even = train.log_tokens_mean + 0.4 * (train.log_tokens - train.log_tokens_mean) / train.deviation
    seen = replace(train.observations(), log_tokens=even)
    estimator = fit_estimator(seen, EstimatorConfig(), CATALOG.names)
    truth_usd = fresh.cost_usd(np.exp(fresh.log_tokens_mean + 0.4**2 / 2))
    ratio = estimator.predict(fresh.queries, CATALOG).cost_usd / truth_usd
    assert 0.9 < ratio.min() < ratio.max() < 1.1


def logs_of_prompts(share_unknown: float, seed: int, num_turns: int = 2000) -> tuple[Sessions, NDArray[np.int64]]:
    """Logs of prompts of about 150 tokens and answers of about 200, and the prompts' true tokens [N]."""
    rng, sessions = np.random.default_rng(seed), make_sessions([4] * (num_turns // 4), seed=seed)
    prompt_tokens = np.rint(np.exp(5 + 0.4 * rng.normal(size=num_turns))).astype(np.int64)
    answer_tokens = 200 * np.exp(0.4 * rng.normal(size=(num_turns, 2)))
    price_in, price_out = sessions.catalog.usd_per_token()
    cost_nusd = to_nusd(prompt_tokens[:, None] * price_in + answer_tokens * price_out)
    logged = replace(
        sessions,
        prompt_tokens=np.where(rng.random(num_turns) < share_unknown, 0, prompt_tokens),
        outcome_cost_nusd=cost_nusd,
        cost_nusd=cost_nusd[np.arange(num_turns), sessions.action],
    )
    return logged, prompt_tokens


def test_prompts_are_not_paid_twice_after_logs_with_costs_only() -> None:
    logs, prompt_tokens = logs_of_prompts(share_unknown=1.0, seed=0)
    estimator = fit_estimator(observe(logs), EstimatorConfig(), logs.catalog.names)
    unknown = estimator.predict(logs.queries, logs.catalog)
    known = estimator.predict(replace(logs.queries, prompt_tokens=prompt_tokens), logs.catalog)
    for name, values in vars(known).items():
        np.testing.assert_array_equal(values, getattr(unknown, name), err_msg=name)
    np.testing.assert_allclose(known.cost_usd.mean(axis=0), to_usd(logs.outcome_cost_nusd).mean(axis=0), rtol=0.03)


@pytest.mark.parametrize("share_unknown", [0.0, 0.3, 0.7])
def test_the_mean_cost_is_right_where_only_some_prompts_were_logged(share_unknown: float) -> None:
    logs, _ = logs_of_prompts(share_unknown, seed=0)
    estimator = fit_estimator(observe(logs), EstimatorConfig(), logs.catalog.names)
    fresh, prompt_tokens = logs_of_prompts(0.5, seed=1)
    queries, truth_usd = fresh.queries, to_usd(fresh.outcome_cost_nusd).mean(axis=0)
    half, known, unknown = (
        estimator.predict(replace(queries, prompt_tokens=tokens), fresh.catalog).cost_usd.mean(axis=0)
        for tokens in (queries.prompt_tokens, prompt_tokens, np.zeros_like(prompt_tokens))
    )
    np.testing.assert_allclose(half, truth_usd, rtol=0.03)
    np.testing.assert_allclose(known, truth_usd, rtol=0.05)
    np.testing.assert_allclose(unknown, truth_usd, rtol=0.05)  # a typical prompt is a little below the mean


@pytest.mark.parametrize("prompt_tokens", [1, 10**5, 10**7])
def test_a_prompt_of_unseen_length_is_not_predicted_to_run_away(prompt_tokens: int) -> None:
    fresh = world(seed=1).queries
    estimates = fitted().predict(replace(fresh, prompt_tokens=np.full(len(fresh), prompt_tokens)), CATALOG)
    price_in, price_out = CATALOG.usd_per_token()
    answer_tokens = (estimates.cost_high_usd - prompt_tokens * price_in) / price_out
    assert np.exp(world().log_tokens).max() * 10 > answer_tokens.max()


def test_another_price_is_another_cost_without_another_fit() -> None:
    queries, twice = world(seed=1).queries, Catalog(tuple(map(twice_as_dear, CATALOG.models)))
    cheap, dear = (fitted().predict(queries, catalog) for catalog in (CATALOG, twice))
    np.testing.assert_array_equal(dear.quality, cheap.quality)
    np.testing.assert_allclose(dear.cost_usd, 2 * cheap.cost_usd, rtol=1e-6)
    np.testing.assert_allclose(dear.cost_high_usd, 2 * cheap.cost_high_usd, rtol=1e-6)


def twice_as_dear(model: ModelSpec) -> ModelSpec:
    return replace(model, usd_per_m_input=2 * model.usd_per_m_input, usd_per_m_output=2 * model.usd_per_m_output)


@pytest.mark.parametrize("quantile", [0.8, 0.95])
def test_the_high_quantile_covers_its_share_of_easy_and_of_runaway_queries(quantile: float) -> None:
    estimator = fit_estimator(world().observations(), EstimatorConfig(cost_quantile=quantile), CATALOG.names)
    fresh = world(seed=2)
    covered = fresh.cost_usd(np.exp(fresh.log_tokens)) <= estimator.predict(fresh.queries, CATALOG).cost_high_usd
    np.testing.assert_allclose(covered.mean(axis=0), quantile, atol=0.02)
    wide = fresh.deviation > np.median(fresh.deviation, axis=0)
    for k in range(len(CATALOG)):
        for rows in (wide[:, k], ~wide[:, k]):
            assert covered[rows, k].mean() == pytest.approx(quantile, abs=0.03)


def test_the_chance_of_a_runaway_answer_comes_close_to_the_law() -> None:
    # An answer runs away to ten times its length in 1 % of one type of task and 8 % of the other.
    train, fresh, rng = world(), world(seed=1), np.random.default_rng(4)
    chance = np.where(train.queries.task_type == TYPES[1], 0.08, 0.01)[:, None]
    runs_away = rng.random(train.quality.shape) < chance
    log_tokens = train.log_tokens_mean + 0.2 * rng.normal(size=runs_away.shape) + np.log(10) * runs_away
    seen = replace(train.observations(), log_tokens=log_tokens)
    estimator = fit_estimator(seen, EstimatorConfig(), CATALOG.names)
    runaway = estimator.predict(fresh.queries, CATALOG).runaway
    for name, expected in zip(TYPES, (0.01, 0.08), strict=True):
        of_type = fresh.queries.task_type == name
        np.testing.assert_allclose(runaway[of_type].mean(axis=0), expected, atol=0.01)
    observed = log_tokens[runs_away[:, 0], 0].mean()
    assert abs(estimator.runaway_log_tokens[0] - observed) < 0.1
    estimates = estimator.predict(fresh.queries, CATALOG)
    assert (estimates.runaway_cost_usd >= estimates.cost_high_usd).all()
    assert np.median(estimates.runaway_cost_usd[:, 0] / estimates.cost_usd[:, 0]) > 4


def test_where_no_answer_ran_away_the_least_that_counts_as_one_stands_for_it() -> None:
    log_tokens = np.full((len(world().quality), 2), 5.0)
    estimator = fit_estimator(replace(world().observations(), log_tokens=log_tokens), EstimatorConfig(), CATALOG.names)
    np.testing.assert_allclose(estimator.runaway_log_tokens, 5.0 + np.log(4), atol=0.01)


def coverage_after_few_observations(seed: int, num_rows: int = 300, num_dims: int = 64) -> float:
    """Share of fresh queries below the high quantile of an estimator fitted on few rows."""
    rng = np.random.default_rng(seed)
    embedding = unit_rows(rng.normal(size=(num_rows + 5000, num_dims)))
    log_tokens = 6 + embedding[:, :1] + 0.3 * rng.normal(size=(len(embedding), 1))
    quality = rng.integers(0, 2, size=(num_rows, 1)).astype(np.float64)
    queries = Queries(embedding, np.full(len(embedding), UNKNOWN_TYPE), np.zeros(len(embedding), dtype=np.int64))
    names = np.arange(num_rows).astype(np.str_)
    seen = Observations(queries.take(np.arange(num_rows)), quality, log_tokens[:num_rows], names)
    estimator = fit_estimator(seen, EstimatorConfig(), ("m",))
    high = estimator.predict(queries.take(np.arange(num_rows, len(queries))), DOLLAR_A_TOKEN).cost_high_usd
    return float(np.mean(np.exp(log_tokens[num_rows:]) <= high))


def test_the_high_quantile_covers_fresh_queries_also_after_few_observations_of_many_numbers() -> None:
    # In-sample residuals of 66 weights on 300 rows would cover 89 % only.
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


def reused_questions(num_sessions: int = 120, num_questions: int = 120) -> Sessions:
    """Sessions of 4 turns over few questions of two types, each with one vector and one outcome."""
    sessions = make_sessions([4] * num_sessions)
    question = np.random.default_rng(1).integers(num_questions, size=len(sessions.action))
    rows = np.arange(len(question))
    outcome_quality, outcome_cost = sessions.outcome_quality[question], sessions.outcome_cost_nusd[question]
    return replace(
        sessions,
        embedding=sessions.embedding[question],
        group_id=np.array([f"q{q}" for q in question]),
        source=np.array(TYPES)[question % 2],
        prompt_tokens=10 + question,
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost,
        quality=outcome_quality[rows, sessions.action],
        cost_nusd=outcome_cost[rows, sessions.action],
    )


@pytest.mark.parametrize("group", ["q3", "q28", "q45"])
def test_a_groups_own_outcomes_do_not_influence_its_own_estimates(group: str) -> None:
    sessions, config = reused_questions(), EstimatorConfig(num_folds=3)
    own = sessions.group_id == group
    assert own.sum() >= 2
    before, summary_before = cross_fitted(sessions, config)
    after, summary_after = cross_fitted(with_other_outcomes(sessions, own), config)
    other_fold = fold_of(sessions.group_id, 3) != fold_of(np.array([group]), 3)[0]
    for name in ("quality", "cost_usd", "cost_high_usd", "runaway", "runaway_cost_usd"):
        ours, theirs = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(ours[own], theirs[own], err_msg=name)
        assert (ours[other_fold] != theirs[other_fold]).any(axis=1).all(), name
    np.testing.assert_array_equal(summary_before, summary_after)  # it is of queries, not of outcomes


def test_a_groups_own_type_and_length_do_not_influence_what_its_fold_makes_of_others() -> None:
    sessions, config = reused_questions(), EstimatorConfig(num_folds=3)
    own = sessions.group_id == "q3"
    same_fold = fold_of(sessions.group_id, 3) == fold_of(np.array(["q3"]), 3)[0]
    other = replace(sessions, prompt_tokens=np.where(own, 5000, sessions.prompt_tokens))
    (_, before), (_, after) = (cross_fitted(s, config) for s in (sessions, other))
    np.testing.assert_array_equal(before[same_fold & ~own], after[same_fold & ~own])
    assert (before[~same_fold] != after[~same_fold]).any(axis=1).all()


def test_every_turn_is_estimated_by_the_model_of_its_fold() -> None:
    sessions, config = reused_questions(), EstimatorConfig(num_folds=4)
    models = cross_fit(observe(sessions), config, sessions.catalog.names)
    estimates, summary = cross_fitted(sessions, config)
    assert len(models) == 4
    for fold, model in enumerate(models):
        rows = np.flatnonzero(fold_of(sessions.group_id, 4) == fold)
        queries = sessions.queries.take(rows)
        np.testing.assert_array_equal(summary[rows], model.features.summary(queries))
        for name, values in vars(model.predict(queries, sessions.catalog)).items():
            np.testing.assert_array_equal(getattr(estimates, name)[rows], values, err_msg=name)


def test_all_folds_tell_the_same_types_apart() -> None:
    sessions = reused_questions()
    seen = observe(sessions)
    assert (np.unique(seen.queries.task_type, return_counts=True)[1] < 62).all()  # without a fold fewer than 50
    models = cross_fit(seen, EstimatorConfig(), sessions.catalog.names)
    assert [model.features.types.tolist() for model in models] == [list(TYPES)] * 5


@settings(deadline=None)  # the machine may be busy
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
@given(st.lists(st.integers(0, 119), max_size=80))
def test_a_question_that_sessions_reuse_counts_once(repeated: list[int]) -> None:
    sessions = reused_questions()
    once = observe(sessions)
    again = observe(sessions.take(np.array([*range(120), *repeated])))
    assert len(once.quality) == len(np.unique(sessions.group_id)) == len(set(once.fold_key.tolist()))
    np.testing.assert_array_equal(again.fold_key, once.fold_key)
    for name, values in vars(once.queries).items():
        np.testing.assert_array_equal(getattr(again.queries, name), values, err_msg=name)
    np.testing.assert_allclose(again.quality, once.quality, rtol=1e-12)
    np.testing.assert_allclose(again.log_tokens, once.log_tokens, rtol=1e-12)


def test_observations_worked_by_hand() -> None:
    sessions = make_sessions([2, 2])  # turns 0 and 2 ask one question, turn 3 asks it in other words
    sessions.embedding[2] = sessions.embedding[0]
    seen = observe(  # a token costs 1,000 nano-dollars; of model 1, one of a prompt 2,000 and of an answer 3,000
        replace(
            sessions,
            group_id=np.array(["a", "b", "a", "a"]),
            source=np.array(["even", "odd", "even", ""]),
            action=np.array([0, 0, 0, 1]),
            quality=np.array([1.0, np.nan, 0.0, 0.5], dtype=np.float32),
            prompt_tokens=np.array([100, 0, 100, 50]),
            cost_nusd=np.array([200_000, 0, 500_000, 220_000]),
            outcome_quality=np.full((4, 2), np.nan, dtype=np.float32),
            outcome_cost_nusd=np.full((4, 2), NOT_MEASURED_NUSD),
        )
    )
    assert seen.fold_key.tolist() == ["a", "a", "b"]
    asked, other, b = (
        int(np.flatnonzero((seen.queries.embedding == sessions.embedding[row]).all(axis=1))[0]) for row in (0, 3, 1)
    )
    order, nan = [asked, other, b], np.nan
    assert seen.queries.task_type[order].tolist() == ["even", "", "odd"]
    assert seen.queries.prompt_tokens[order].tolist() == [100, 50, 0]
    np.testing.assert_array_equal(seen.quality[order], [[0.5, nan], [nan, 0.5], [nan, nan]])
    tokens = np.exp(seen.log_tokens[order])
    np.testing.assert_allclose(tokens, [[200, nan], [nan, 40], [1, nan]])  # geometric mean of 100 and 400; free


def test_a_typical_prompt_is_taken_off_costs_without_prompt_tokens_among_others_with_them() -> None:
    sessions = make_sessions([4], num_models=1)  # a token of prompt or answer costs 1,000 nano-dollars
    cost_nusd = np.array([110_000, 1_050_000, 150_000, 90_000])
    logged = replace(sessions, cost_nusd=cost_nusd, outcome_cost_nusd=cost_nusd[:, None])
    mixed = observe(replace(logged, prompt_tokens=np.array([50, 200, 0, 0])))
    typical = 100 * np.exp(np.log(2) ** 2 / 2)  # the mean of log-normal prompts, about 127
    tokens = np.exp(mixed.log_tokens[:, 0])
    np.testing.assert_allclose(tokens, [60, 850, 150 - typical, 1])  # an answer has at least one
    without = observe(replace(logged, prompt_tokens=np.zeros(4, dtype=np.int64)))
    np.testing.assert_allclose(np.exp(without.log_tokens[:, 0]), cost_nusd / 1000)


def test_measured_outcomes_of_other_models_are_observed() -> None:
    sessions = make_sessions([5])
    seen = observe(sessions)
    order = np.argsort(sessions.group_id)
    np.testing.assert_array_equal(seen.fold_key, sessions.group_id[order])
    np.testing.assert_allclose(seen.quality, sessions.outcome_quality[order])
    price_in, price_out = (1e9 * prices for prices in sessions.catalog.usd_per_token())
    billed_nusd = sessions.prompt_tokens[order][:, None] * price_in + np.exp(seen.log_tokens) * price_out
    np.testing.assert_allclose(billed_nusd, sessions.outcome_cost_nusd[order])


def test_a_free_model_is_predicted_to_cost_nothing() -> None:
    catalog = Catalog((replace(make_catalog().models[0], usd_per_m_input=0.0, usd_per_m_output=0.0),))
    sessions = replace(make_sessions([1] * 40, num_models=1), catalog=catalog)
    free = replace(sessions, cost_nusd=np.zeros(40, dtype=np.int64), outcome_cost_nusd=np.zeros((40, 1), np.int64))
    estimator = fit_estimator(observe(free), EstimatorConfig(), catalog.names)
    estimates = estimator.predict(make_queries(9), catalog)
    assert (estimates.cost_usd == 0).all()
    assert (estimates.cost_high_usd == 0).all()


def test_a_model_whose_answers_are_free_costs_its_prompt_and_hardly_more() -> None:
    catalog = Catalog((replace(make_catalog().models[0], usd_per_m_output=0.0),))
    sessions = make_sessions([1] * 40, num_models=1)
    cost_nusd = 1000 * sessions.prompt_tokens
    paid = replace(sessions, catalog=catalog, cost_nusd=cost_nusd, outcome_cost_nusd=cost_nusd[:, None])
    estimator = fit_estimator(observe(paid), EstimatorConfig(), catalog.names)
    queries = replace(sessions.queries, prompt_tokens=np.full(40, 2000))
    np.testing.assert_allclose(estimator.predict(queries, catalog).cost_high_usd, 2000e-6, rtol=1e-3)


def first_of(seen: Observations, num_rows: int) -> Observations:
    rows = np.arange(num_rows)
    return Observations(seen.queries.take(rows), seen.quality[rows].copy(), seen.log_tokens[rows], seen.fold_key[rows])


def test_too_few_observations_name_the_model_and_how_many_it_has() -> None:
    seen = first_of(world().observations(), 40)
    seen.quality[MIN_ROWS_PER_MODEL - 1 :, 1] = np.nan
    with pytest.raises(DataError, match=r"each model needs 20 judged queries .* too few: large \(19\)$"):
        fit_estimator(seen, EstimatorConfig(), CATALOG.names)


def test_a_model_that_is_always_right_or_always_wrong_still_gets_finite_estimates() -> None:
    seen = first_of(world().observations(), 200)
    certain = replace(seen, quality=np.broadcast_to([0.0, 1.0], seen.quality.shape))
    estimator = fit_estimator(certain, EstimatorConfig(), CATALOG.names)
    quality = estimator.predict(world(seed=1).queries, CATALOG).quality
    assert (quality[:, 0] < 0.1).all()
    assert (quality[:, 1] > 0.9).all()


def test_an_embedding_of_another_dimension_is_refused() -> None:
    with pytest.raises(DataError, match=r"the estimator was fitted on 4-d embeddings, got shape \(3, 5\)"):
        make_estimator().predict(make_queries(3, num_dims=5), make_catalog())


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 4), st.integers(0, 100))
def test_an_estimator_survives_the_way_to_arrays_and_back(num_models: int, seed: int) -> None:
    estimator, queries, catalog = make_estimator(num_models, seed), make_queries(5, seed), make_catalog(num_models)
    again = OutcomeEstimator.from_arrays(estimator.arrays())
    for name, values in vars(estimator.predict(queries, catalog)).items():
        np.testing.assert_array_equal(getattr(again.predict(queries, catalog), name), values, err_msg=name)


def test_a_prediction_worked_by_hand() -> None:
    log_tokens = np.array([np.log(10), 1.0], dtype=np.float32)
    features = QueryFeatures(np.array([UNKNOWN_TYPE]), np.zeros((2, 1), dtype=np.float32), log_tokens)
    weights = np.array([[1.0], [2.0], [-1.0]], dtype=np.float32)  # level, length, slope on a 1-d embedding
    shift, deviations = np.array([0.5], dtype=np.float32), np.array([3.0], dtype=np.float32)
    limit = np.log(np.array([1000.0], dtype=np.float32))
    spread, runaway = np.log(np.abs(weights)), weights - 1
    estimator = OutcomeEstimator(features, weights, -weights, spread, runaway, limit, shift, deviations)
    queries = Queries(np.array([[0.0], [1.0]]), np.full(2, UNKNOWN_TYPE), np.array([0, 10 * 20]))
    catalog = Catalog((ModelSpec(name="m", usd_per_m_input=3e6, usd_per_m_output=2e6),))
    estimates = estimator.predict(queries, catalog)
    long = np.log(20)  # z = 1 and 1 + 2 long - 1; spread 1 and exp(long ln 2) = 2 ** long
    np.testing.assert_allclose(estimates.quality[:, 0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2 * long))], rtol=1e-6)
    np.testing.assert_allclose(estimates.runaway[:, 0], [0.5, 1 / (1 + np.exp(2 - long))], rtol=1e-6)
    typical = 30 * np.exp(0.5)  # USD: an unknown prompt is billed as the mean of log-normal ones around 10 tokens
    np.testing.assert_allclose(
        estimates.cost_usd[:, 0], [typical + 2 * np.exp(0.5 - 1), 600 + 2 * np.exp(0.5 - 2 * long)], rtol=1e-6
    )
    high_usd = [typical + 2 * np.exp(3 - 1), 600 + 2 * np.exp(3 * 2**long - 2 * long)]
    np.testing.assert_allclose(estimates.cost_high_usd[:, 0], high_usd, rtol=1e-4)
    runaway_usd = np.maximum([typical + 2 * 1000, 600 + 2 * 1000], high_usd)
    np.testing.assert_allclose(estimates.runaway_cost_usd[:, 0], runaway_usd, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type_penalty": 0.0}, "type_penalty must be > 0, got 0.0"),
        ({"length_penalty": float("nan")}, "length_penalty must be > 0, got nan"),
        ({"quality_penalty": 0.0}, "quality_penalty must be > 0, got 0.0"),
        ({"cost_penalty": -1.0}, "cost_penalty must be > 0, got -1.0"),
        ({"runaway_penalty": -1.0}, "runaway_penalty must be > 0, got -1.0"),
        ({"num_folds": 1}, "num_folds must be at least 2, got 1"),
        ({"cost_quantile": 0.4}, r"cost_quantile must be in \[0.5, 1\), got 0.4"),
        ({"cost_quantile": 1.0}, r"cost_quantile must be in \[0.5, 1\), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EstimatorConfig(**fields)
