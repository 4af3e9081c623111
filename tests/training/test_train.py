"""The whole way on Ray: relabel, train, artefact; against exact dynamic programming."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.dataset import read_dataset
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact, RiskPrices
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.replay import ReplayData, replay
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.reader import Batch
from seqroute_ray.training.relabeled import RelabeledData
from seqroute_ray.training.train import algorithm_config, train
from tests.training.conftest import PENALTY
from tests.training.toy_mdp import BUDGETS_UNITS, NUM_TURNS, UNIT_USD, ToyMdp, action_values, best_value

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# Without noise: a turn's type is all that the history tells here, and cloning must see it to undo the estimates.
CQL = CqlConfig(hidden=(64, 64), num_steps=1500, batch_size=512, history_noise=0.0)


@pytest.fixture(scope="module")
def policy(toy_dataset: RelabelReport, tmp_path_factory: pytest.TempPathFactory) -> PolicyArtefact:
    folder = tmp_path_factory.mktemp("policy")
    train(TrainConfig(dataset=Path(toy_dataset.out), out=folder, cql=CQL))
    return PolicyArtefact.load(folder)


def shares_of_optimum(artefact: PolicyArtefact) -> list[float]:
    """Mean total quality on fresh sessions of the toy MDP over the optimum's, for each of BUDGETS_UNITS."""
    data = ReplayData.prepare(ToyMdp(2000, seed=7).sessions(), artefact.estimator, artefact.layout)
    shares = []
    for units in BUDGETS_UNITS:
        budget_nusd = np.full(2000, to_nusd(units * UNIT_USD))
        result = replay(QPolicy(artefact.network, artefact.risk), data, budget_nusd)
        shares.append(float(result.quality.sum() / 2000) / best_value(NUM_TURNS, units))
    return shares


def test_the_dynamic_program_knows_what_a_hand_knows() -> None:
    assert best_value(1, 1) == pytest.approx(0.5 * 0.9 + 0.5 * 0.1)
    assert action_values(1, 1, 4) == pytest.approx([0.1, 0.9])
    assert best_value(2, 5) == pytest.approx(0.25 * (1.85 + 1.8 + 1.8 + 1.0))


def test_cql_reaches_95_percent_of_the_exact_optimum_and_cloning_does_not(
    toy_dataset: RelabelReport, policy: PolicyArtefact, tmp_path: Path
) -> None:
    cloning = replace(CQL, td_weight=0.0, cql_alpha=1.0)
    cloned = train(TrainConfig(dataset=Path(toy_dataset.out), out=tmp_path, cql=cloning)).artefact
    assert min(shares_of_optimum(policy)) >= 0.95
    assert max(shares_of_optimum(cloned)) < 0.95


def test_relabeling_ran_on_ray_and_says_what_it_wrote(toy_dataset: RelabelReport) -> None:
    dataset = read_dataset(Path(toy_dataset.out))
    assert len(dataset.transitions) == toy_dataset.num_transitions == dataset.manifest["num_transitions"]
    assert int(dataset.transitions.bankrupt.sum()) == toy_dataset.num_bankrupt
    assert toy_dataset.num_workers >= 1
    assert len(dataset.manifest["shards"]) == 3


def test_the_artefact_names_the_penalty_of_its_data(policy: PolicyArtefact) -> None:
    assert policy.risk == RiskPrices((1.0,), (PENALTY,))
    assert policy.configs["hbr"]["bankruptcy_penalty"] == PENALTY


def data_of(toy_dataset: RelabelReport) -> RelabeledData:
    return RelabeledData.of(read_dataset(Path(toy_dataset.out)))


def test_the_target_network_moves_with_every_gradient_step(toy_dataset: RelabelReport) -> None:
    config = algorithm_config(lambda: data_of(toy_dataset), replace(CQL, num_steps=1, tau=0.25, lr=0.5), PENALTY)
    algorithm = config.build_algo()
    try:
        module = algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped()
        before = [p.detach().clone() for p in module.target_network.parameters()]
        algorithm.train()
        moved = []
        for start, target, online in zip(
            before, module.target_network.parameters(), module.network.parameters(), strict=True
        ):
            moved.append(not torch.equal(online, start))
            torch.testing.assert_close(target, torch.lerp(start, online, 0.25))
        assert moved[-2:] == [True, True]  # the layers below the zeros of the last one move from the second step on
    finally:
        algorithm.stop()


@dataclass(frozen=True)
class Watched:
    """Transitions that remember, for the whole process, which rows were asked for."""

    data: RelabeledData
    asked: ClassVar[list[IntArray]] = []

    @property
    def state_dim(self) -> int:
        return self.data.state_dim

    @property
    def num_actions(self) -> int:
        return self.data.num_actions

    @property
    def network(self) -> dict[str, int]:
        return self.data.network

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: IntArray) -> Batch:
        self.asked.append(rows)
        return self.data.batch(rows)


def test_an_epoch_goes_on_over_training_iterations_and_the_next_is_in_another_order(toy_dataset: RelabelReport) -> None:
    data = data_of(toy_dataset)
    size = len(data) // 4
    Watched.asked.clear()
    source = Watched(data)
    algorithm = algorithm_config(lambda: source, replace(CQL, num_steps=3, batch_size=size), PENALTY).build_algo()
    try:
        for _ in range(3):  # of 3 batches each; an epoch has 4
            algorithm.train()
    finally:
        algorithm.stop()
    epochs = [np.concatenate(Watched.asked[first : first + 4]) for first in (0, 4)]
    assert len(Watched.asked) in (9, 10)  # one is fetched ahead
    for rows in epochs:
        assert len(np.unique(rows)) == 4 * size
    assert (epochs[0] != epochs[1]).mean() > 0.99


def test_one_remote_learner_trains_as_well(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    remote = replace(CQL, num_learners=1, num_steps=100)
    artefact = train(TrainConfig(dataset=Path(toy_dataset.out), out=tmp_path, cql=remote)).artefact
    assert PolicyArtefact.load(tmp_path).version == artefact.version
