"""Small real objects that several test files start from."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.mdp import StateLayout, expected_turns_left
from seqroute_ray.core.policy import PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.replay import ReplayData

DIMS = 4
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
        source=np.where(rng.random(num_turns) < 0.5, "even", "odd"),
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost,
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
        reference_cost_usd=8 * MEAN_COST_USD,
        expected_turns_left=expected_turns_left(np.array(num_turns)),
    )


def make_estimator(num_models: int = 2, seed: int = 0, num_dims: int = DIMS) -> OutcomeEstimator:
    """Random weights; costs are around MEAN_COST_USD and their high quantiles above them."""
    rng = np.random.default_rng(seed)

    def weights(intercept: float) -> NDArray[np.float32]:
        drawn = rng.normal(scale=0.3, size=(num_dims + 1, num_models))
        drawn[-1] += intercept
        return drawn.astype(np.float32)

    return OutcomeEstimator(
        quality_weights=weights(0.5),
        cost_weights=weights(np.log(MEAN_COST_USD)),
        spread_weights=weights(-1.5),
        log_cost_mean_shift=np.full(num_models, 0.02, dtype=np.float32),
        high_deviations=np.full(num_models, 2.0, dtype=np.float32),
    )


def make_network(layout: StateLayout, seed: int = 0, hidden: int = 8) -> QNetwork:
    """Random weights."""
    rng = np.random.default_rng(seed)
    widths = (layout.state_dim, hidden, 2 * layout.num_models)
    return QNetwork(
        [
            (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
            for a, b in pairwise(widths)
        ]
    )


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
