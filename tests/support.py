"""Small real objects that several test files start from."""

from collections.abc import Sequence

import numpy as np

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.sessions import Sessions

DIMS = 4


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
