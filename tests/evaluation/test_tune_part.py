"""The metric of a network in training: the same figures as a replay by hand, and refusals before the training."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import RiskPrices
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.evaluation.aiq import aiq
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.replay import replay
from seqroute_ray.evaluation.tune_part import TunePart
from tests.support import make_estimator, make_layout, make_network, make_sessions


@pytest.fixture
def part(tmp_path: Path) -> TunePart:
    sessions = make_sessions([4] * 30, num_models=3)
    sessions = replace(sessions, part=np.full_like(sessions.part, "tune", dtype="<U4"))
    write_sessions(sessions, tmp_path / "sessions.parquet")
    return TunePart(tmp_path / "sessions.parquet", sessions.catalog, make_estimator(3), make_layout(3), penalty=2.0)


def test_figures_are_those_of_replays_at_every_budget(part: TunePart) -> None:
    network, data = make_network(part.layout), part.data
    cost, quality = [], []
    for budget in part.budgets:
        budget_nusd = np.full(30, to_nusd(budget * part.layout.reference_cost_usd))
        result = replay(QPolicy(network, RiskPrices((1.0,), (2.0,))), data, budget_nusd)
        cost.append(result.cost_nusd.sum() / 120 / 1e9)
        quality.append(result.quality.sum() / 120)
    single = data.sessions.outcome_cost_nusd.mean(axis=0) / 1e9
    figures = part(network)
    expected = aiq(np.array(cost), np.array(quality), single.min(), single.max(), log_cost=False)
    assert figures["aiq"] == pytest.approx(expected, rel=1e-5)
    assert figures["quality"] == pytest.approx(np.mean(quality), rel=1e-5)
    assert figures["cost_usd_per_turn"] == pytest.approx(np.mean(cost), rel=1e-5)


def test_it_travels_without_its_sessions(part: TunePart) -> None:
    part.data  # noqa: B018
    assert b"ReplayData" not in pickle.dumps(part)
    network = make_network(part.layout)
    assert pickle.loads(pickle.dumps(part))(network) == part(network)


def test_sessions_of_another_pool_are_refused(part: TunePart) -> None:
    other = Catalog(tuple(replace(model, name=f"other {model.name}") for model in part.catalog.models))
    with pytest.raises(DataError, match="differ from the dataset's"):
        replace(part, catalog=other).data  # noqa: B018
