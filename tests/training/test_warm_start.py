"""A training that starts from an earlier policy's network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.train import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CQL = CqlConfig(num_steps=20, batch_size=64)


@pytest.fixture(scope="module")
def earlier(toy_dataset: RelabelReport, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A trained policy, and how it was trained."""
    config = TrainConfig(dataset=toy_dataset.out, out=tmp_path_factory.mktemp("earlier") / "policy", cql=CQL)
    train(config)
    return config


def largest_change(a: PolicyArtefact, b: PolicyArtefact) -> float:
    weights = zip(a.network.arrays().values(), b.network.arrays().values(), strict=True)
    return max(float(np.abs(one - other).max()) for one, other in weights)


def test_weights_start_from_the_earlier_network(earlier: TrainConfig, tmp_path: Path) -> None:
    """A step of a minute learning rate hardly moves them; random weights are far away."""
    still = replace(CQL, num_steps=1, lr=1e-9, seed=5)
    before = PolicyArtefact.load(earlier.out)
    warm = train(replace(earlier, out=tmp_path / "warm", cql=still, init_from=earlier.out)).artefact
    cold = train(replace(earlier, out=tmp_path / "cold", cql=still)).artefact
    assert largest_change(before, warm) < 1e-6
    assert largest_change(before, cold) > 1e-2


def test_another_starting_point_is_another_run(earlier: TrainConfig) -> None:
    """It does not go on from the checkpoints of the run that began at random."""
    before = PolicyArtefact.load(earlier.out)
    again = train(replace(earlier, out=earlier.out.with_name("again")))
    assert again.artefact.version == before.version
    warm = train(replace(earlier, out=earlier.out.with_name("again"), init_from=earlier.out))
    assert warm.artefact.version != before.version


def test_a_network_of_another_shape_is_refused(earlier: TrainConfig, tmp_path: Path) -> None:
    wider = replace(CQL, hidden=(16,))
    with pytest.raises(ConfigError, match=r"init_from .* has shape"):
        train(replace(earlier, out=tmp_path, cql=wider, init_from=earlier.out))


def test_an_ensemble_cannot_start_from_one_network() -> None:
    with pytest.raises(ConfigError, match="networks that begin alike stay alike"):
        TrainConfig(dataset="d", out=Path("p"), cql=replace(CQL, ensemble_size=2), init_from=Path("q"))
