"""Small real objects that several test files start from."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.estimator import Estimates, OutcomeEstimator
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, expected_turns_left
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import Perceptron, PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.queries import UNKNOWN_TYPE, Queries, QueryFeatures
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import Policy, ReplayData, Turns

DIMS = 4
TYPES = ("even", "odd")  # of task
SUMMARY_WIDTH = len(TYPES) + 1
MAX_PROMPT_TOKENS = 100
MEAN_COST_USD = 0.0025  # of a turn of make_sessions


def make_catalog(num_models: int = 2) -> Catalog:
    models = (
        ModelSpec(name=f"model-{i}", usd_per_m_input=i + 1.0, usd_per_m_output=2.0 * i + 1) for i in range(num_models)
    )
    return Catalog(tuple(models))


def make_sessions(lengths: Sequence[int], num_models: int = 2, seed: int = 0) -> Sessions:
    """Random sessions of the given lengths, every outcome known."""
    rng = np.random.default_rng(seed)
    num_turns = int(sum(lengths))
    action = rng.integers(num_models, size=num_turns)
    outcome_cost = rng.integers(1, 5_000_000, size=(num_turns, num_models))
    outcome_quality = rng.random((num_turns, num_models)).astype(np.float32)
    rows = np.arange(num_turns)
    return Sessions(
        catalog=make_catalog(num_models),
        embedder="wordllama",
        session_id=np.array([f"s{i}" for i in range(len(lengths))]),
        part=np.full(len(lengths), "fit"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        embedding=rng.normal(size=(num_turns, DIMS)).astype(np.float16),
        action=action,
        quality=outcome_quality[rows, action],
        cost_nusd=outcome_cost[rows, action],
        propensity=np.full(num_turns, 1 / num_models, dtype=np.float32),
        group_id=np.array([f"q{i}" for i in range(num_turns)]),
        source=np.where(rng.random(num_turns) < 0.5, *TYPES),
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost,
        prompt_tokens=rng.integers(MAX_PROMPT_TOKENS + 1, size=num_turns),
    )


@st.composite
def random_sessions(draw: st.DrawFn, max_sessions: int = 5, max_turns: int = 6, max_models: int = 3) -> Sessions:
    """Random sessions with every outcome known."""
    lengths = draw(st.lists(st.integers(1, max_turns), min_size=1, max_size=max_sessions))
    return make_sessions(lengths, draw(st.integers(1, max_models)), draw(st.integers(0, 2**32 - 1)))


def make_layout(num_models: int = 2, num_turns: Sequence[int] = (4, 6, 8)) -> StateLayout:
    """The layout of a pool whose dearest model costs MEAN_COST_USD a turn."""
    return StateLayout(
        num_models=num_models,
        summary_width=SUMMARY_WIDTH,
        reference_cost_usd=8 * MEAN_COST_USD,
        expected_turns_left=expected_turns_left(np.array(num_turns)),
    )


def make_queries(num_queries: int, seed: int = 0, num_dims: int = DIMS) -> Queries:
    """Random queries, of some of which the type or the length is not known."""
    rng = np.random.default_rng(seed)
    return Queries(
        embedding=rng.normal(size=(num_queries, num_dims)).astype(np.float32),
        task_type=rng.choice([UNKNOWN_TYPE, *TYPES], size=num_queries),
        prompt_tokens=rng.integers(MAX_PROMPT_TOKENS + 1, size=num_queries),
    )


def make_features(seed: int = 0, num_dims: int = DIMS) -> QueryFeatures:
    """Random weights."""
    rng = np.random.default_rng(seed)
    return QueryFeatures(
        types=np.array(TYPES),
        type_weights=rng.normal(size=(num_dims + 1, len(TYPES))).astype(np.float32),
        log_tokens=np.array([3.5, 0.8], dtype=np.float32),
    )


def make_estimator(num_models: int = 2, seed: int = 0, num_dims: int = DIMS) -> OutcomeEstimator:
    """Random weights; at make_catalog's prices costs are around MEAN_COST_USD, their high quantiles above them."""
    rng = np.random.default_rng(seed)
    features = make_features(seed, num_dims)
    num_types = features.num_types

    def weights(level: float | NDArray[np.floating]) -> NDArray[np.float32]:
        drawn = rng.normal(scale=0.3, size=(2 * num_types + num_dims, num_models))
        drawn[:num_types] += level  # the shares of the types add up to 1
        return drawn.astype(np.float32)

    return OutcomeEstimator(
        features=features,
        quality_weights=weights(0.5),
        token_weights=weights(np.log(MEAN_COST_USD / make_catalog(num_models).usd_per_token()[1])),
        spread_weights=weights(-1.5),
        runaway_weights=weights(-3.0),
        runaway_log_tokens=np.log(8 * MEAN_COST_USD / make_catalog(num_models).usd_per_token()[1]).astype(np.float32),
        log_mean_shift=np.full(num_models, 0.02, dtype=np.float32),
        high_deviations=np.full(num_models, 2.0, dtype=np.float32),
    )


def make_risk(num_models: int = 2, num_types: int = len(TYPES), num_turns: int = 6, seed: int = 0) -> RiskTable:
    """Random chances of bankruptcy."""
    rng = np.random.default_rng(seed)
    return RiskTable(
        chance=rng.random((num_turns, num_types, num_models, 20), dtype=np.float32),
        money_usd=np.geomspace(1e-3, 20.0, 20) * MEAN_COST_USD,
        mean_cost_usd=rng.random((num_types, num_models)) * MEAN_COST_USD,
    )


def make_turns(num_turns: int, num_models: int = 2, seed: int = 0) -> TurnFeatures:
    """Random features of turns; costs are around MEAN_COST_USD."""
    rng = np.random.default_rng(seed)
    cost_usd = MEAN_COST_USD * rng.lognormal(size=(num_turns, num_models))
    estimates = Estimates(
        quality=rng.random((num_turns, num_models), dtype=np.float32),
        cost_usd=cost_usd.astype(np.float32),
        cost_high_usd=(cost_usd * rng.uniform(1, 4, size=cost_usd.shape)).astype(np.float32),
        runaway=rng.uniform(0, 0.2, size=cost_usd.shape).astype(np.float32),
        runaway_cost_usd=(cost_usd * rng.uniform(4, 16, size=cost_usd.shape)).astype(np.float32),
    )
    return TurnFeatures(estimates, rng.normal(size=(num_turns, SUMMARY_WIDTH)).astype(np.float32))


def make_network(layout: StateLayout, seed: int = 0, hidden: int = 8) -> QNetwork:
    """Random weights."""
    rng = np.random.default_rng(seed)

    def perceptron(num_own: int) -> Perceptron:
        widths = (layout.num_context + num_own, hidden, 1)
        return Perceptron(
            [
                (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
                for a, b in pairwise(widths)
            ]
        )

    return QNetwork(perceptron(NUM_AFTER - NUM_RISK), perceptron(NUM_AFTER), layout.num_context)


def make_artefact(num_models: int = 2, seed: int = 0, **fields: Any) -> PolicyArtefact:
    """A policy of random weights; `fields` replace its parts."""
    layout = make_layout(num_models)
    parts: dict[str, Any] = {
        "catalog": make_catalog(num_models),
        "embedder": "wordllama",
        "layout": layout,
        "estimator": make_estimator(num_models, seed),
        "network": make_network(layout, seed),
        "risk": RiskPrices(budgets=(0.1, 1.0), penalties=(1.0, 4.0)),
        "configs": {"mean_cost_usd": [MEAN_COST_USD] * num_models},
        "data_fingerprint": "0123456789abcdef",
    }
    return PolicyArtefact(**parts | fields)


def make_replay_data(sessions: Sessions, seed: int = 0) -> ReplayData:
    """The sessions with estimates of random weights."""
    num_models = len(sessions.catalog)
    return ReplayData.prepare(sessions, make_estimator(num_models, seed), make_layout(num_models))


def make_estimates(quality: ArrayLike, cost_usd: ArrayLike, cost_high_usd: ArrayLike | None = None) -> Estimates:
    """Estimates [N, K] by hand; the high quantile is the mean cost unless it is given. Nothing runs away."""
    mean_usd = np.array(cost_usd, dtype=np.float32)
    high_usd = mean_usd.copy() if cost_high_usd is None else np.array(cost_high_usd, dtype=np.float32)
    return Estimates(np.array(quality, dtype=np.float32), mean_usd, high_usd, np.zeros_like(mean_usd), high_usd)


def make_foreseen(estimates: Estimates, lengths: Sequence[int] = (), **layout: Any) -> ReplayData:
    """Sessions of the lengths (one of all turns) whose every outcome is as estimated; `layout` replaces its parts."""
    num_turns, num_models = estimates.quality.shape
    sessions = make_sessions(lengths or [num_turns], num_models)
    outcome_cost, rows = to_nusd(estimates.cost_usd), np.arange(num_turns)
    sessions = replace(
        sessions,
        outcome_quality=estimates.quality,
        outcome_cost_nusd=outcome_cost,
        quality=estimates.quality[rows, sessions.action],
        cost_nusd=outcome_cost[rows, sessions.action],
    )
    features = TurnFeatures(estimates, np.zeros((num_turns, SUMMARY_WIDTH), dtype=np.float32))
    return ReplayData(sessions, replace(make_layout(num_models), **layout), features)


def ask(
    policy: Policy, data: ReplayData, turn: int, rows: Sequence[int] | IntArray, remaining_usd: ArrayLike
) -> list[int]:
    """The policy's actions on some rows of sessions that have spent nothing yet."""
    money_usd = np.array(remaining_usd, dtype=np.float64)
    return [int(action) for action in policy.act(data, Turns(np.array(rows), turn, money_usd, money_usd))]
