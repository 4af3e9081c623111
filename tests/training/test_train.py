"""The whole way on Ray: relabel, train, artefact; against exact dynamic programming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import read_dataset
from seqroute_ray.core.estimator import EstimatorConfig
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.replay import ReplayData, replay
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.cql import Heads, q_network, to_numpy
from seqroute_ray.training.reader import BANKRUPT, training_columns
from seqroute_ray.training.train import algorithm_config, train
from tests.training.toy_mdp import BUDGET_UNITS, NUM_TURNS, UNIT_USD, ToyMdp, action_values, best_value

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# The optimum counts quality alone, so a bankruptcy costs no more here than the turns it loses.
CQL = CqlConfig(hidden=(64, 64), num_steps=1500, batch_size=512, bankruptcy_penalty=0.1)


@pytest.fixture(scope="module")
def relabeled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> RelabelReport:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("toy")
    write_sessions(ToyMdp(1500, seed=0).sessions(), folder / "sessions.parquet")
    hbr = HbrConfig(paths="sampled", num_paths=4, num_budgets=4, min_budget=0.1, max_budget=1.0)
    weak_ridge = EstimatorConfig(quality_penalty=0.1, cost_penalty=0.1)
    return relabel_sessions(
        RelabelConfig(sessions=folder / "sessions.parquet", out=folder / "dataset", hbr=hbr, estimator=weak_ridge)
    )


@pytest.fixture(scope="module")
def policy(relabeled: RelabelReport, tmp_path_factory: pytest.TempPathFactory) -> PolicyArtefact:
    folder = tmp_path_factory.mktemp("policy")
    train(TrainConfig(dataset=Path(relabeled.out), out=folder, cql=CQL))
    return PolicyArtefact.load(folder)


def value_of(artefact: PolicyArtefact) -> float:
    """Mean total quality on fresh sessions of the toy MDP."""
    data = ReplayData.prepare(ToyMdp(2000, seed=7).sessions(), artefact.estimator, artefact.layout)
    result = replay(
        QPolicy(artefact.network, CQL.bankruptcy_penalty), data, np.full(2000, to_nusd(BUDGET_UNITS * UNIT_USD))
    )
    return float(result.quality.sum() / 2000)


def test_the_dynamic_program_knows_what_a_hand_knows() -> None:
    assert best_value(1, 1) == pytest.approx(0.5 * 0.9 + 0.5 * 0.1)
    assert action_values(1, 1, 4) == pytest.approx([0.1, 0.9])
    assert best_value(2, 5) == pytest.approx(0.25 * (1.85 + 1.8 + 1.8 + 1.0))


def test_cql_reaches_95_percent_of_the_exact_optimum_and_cloning_does_not(
    relabeled: RelabelReport, policy: PolicyArtefact, tmp_path: Path
) -> None:
    optimum = best_value(NUM_TURNS, BUDGET_UNITS)
    cloning = replace(CQL, td_weight=0.0, cql_alpha=1.0, num_steps=500)
    cloned = train(TrainConfig(dataset=Path(relabeled.out), out=tmp_path, cql=cloning))
    assert value_of(policy) >= 0.95 * optimum
    assert value_of(cloned) < 0.95 * optimum


def test_relabeling_ran_on_ray_and_says_what_it_wrote(relabeled: RelabelReport) -> None:
    dataset = read_dataset(Path(relabeled.out))
    assert len(dataset.transitions) == relabeled.num_transitions == dataset.manifest["num_transitions"]
    assert int(dataset.transitions.bankrupt.sum()) == relabeled.num_bankrupt
    assert relabeled.num_workers >= 1
    assert len(dataset.manifest["shards"]) == 3


def test_the_target_network_moves_with_every_gradient_step(relabeled: RelabelReport) -> None:
    columns = training_columns(read_dataset(Path(relabeled.out)))
    config = algorithm_config(columns, replace(CQL, num_steps=1, tau=0.25, lr=0.5))
    algorithm = config.build_algo()
    try:
        module = algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
        before = [p.detach().clone() for p in module.target_network.parameters()]
        algorithm.train()
        for start, target, online in zip(
            before, module.target_network.parameters(), module.network.parameters(), strict=True
        ):
            assert not torch.equal(online, start)
            torch.testing.assert_close(target, torch.lerp(start, online, 0.25))
    finally:
        algorithm.stop()


def test_a_terminated_row_has_no_future(relabeled: RelabelReport) -> None:
    columns = training_columns(read_dataset(Path(relabeled.out)))
    last = columns[Columns.TERMINATEDS]
    assert last.any()
    bankrupt = columns[BANKRUPT] == 1
    assert bankrupt.any()
    assert last[bankrupt].all()
    assert (columns[Columns.REWARDS][bankrupt] == 0).all()
    assert columns[Columns.OBS].shape == columns[Columns.NEXT_OBS].shape


def test_numpy_and_torch_agree_on_q_values() -> None:
    torch.manual_seed(0)
    network = q_network(23, (64, 32), 5)
    state = torch.randn(1000, 23)
    ours = to_numpy(network).values(state.numpy()).q_values(penalty=5.0)
    np.testing.assert_allclose(ours, Heads.of(network(state)).q_values(5.0).detach().numpy(), atol=1e-5)


def test_one_remote_learner_trains_as_well(relabeled: RelabelReport, tmp_path: Path) -> None:
    remote = replace(CQL, num_learners=1, num_steps=100)
    artefact = train(TrainConfig(dataset=Path(relabeled.out), out=tmp_path, cql=remote))
    assert PolicyArtefact.load(tmp_path).version == artefact.version
