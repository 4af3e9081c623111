"""One relabeled dataset of the toy MDP for all tests of training."""

from pathlib import Path

import pytest

from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from tests.training.toy_files import write_tune_sessions
from tests.training.toy_mdp import ToyMdp

# The optimum counts quality alone, so a bankruptcy costs no more here than the turns it loses.
PENALTY = 0.1


@pytest.fixture(scope="session")
def toy_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "sessions.parquet"
    write_sessions(ToyMdp(1500, seed=0).sessions(), path)
    return path


@pytest.fixture(scope="session")
def toy_tune_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tune_sessions(tmp_path_factory.mktemp("toy-tune") / "sessions.parquet", num_sessions=200)


@pytest.fixture(scope="session")
def toy_dataset(toy_sessions: Path, ray_cluster: str) -> RelabelReport:  # noqa: ARG001
    hbr = HbrConfig(
        paths="sampled", num_paths=4, num_budgets=4, min_budget=0.1, max_budget=1.0, bankruptcy_penalty=PENALTY
    )
    weak_ridge = EstimatorConfig(quality_penalty=0.1, cost_penalty=0.1)
    out = toy_sessions.parent / "dataset"
    return relabel_sessions(RelabelConfig(sessions=toy_sessions, out=out, hbr=hbr, estimator=weak_ridge))
