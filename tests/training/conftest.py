"""One relabeled dataset of the toy MDP for all tests of training."""

import pytest

from seqroute_ray.core.estimator import EstimatorConfig
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from tests.training.toy_mdp import ToyMdp

# The optimum counts quality alone, so a bankruptcy costs no more here than the turns it loses.
PENALTY = 0.1


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> RelabelReport:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("toy")
    write_sessions(ToyMdp(1500, seed=0).sessions(), folder / "sessions.parquet")
    hbr = HbrConfig(
        paths="sampled", num_paths=4, num_budgets=4, min_budget=0.1, max_budget=1.0, bankruptcy_penalty=PENALTY
    )
    weak_ridge = EstimatorConfig(quality_penalty=0.1, cost_penalty=0.1)
    return relabel_sessions(
        RelabelConfig(sessions=folder / "sessions.parquet", out=folder / "dataset", hbr=hbr, estimator=weak_ridge)
    )
