"""Evaluation on the way: where its figures are seen, when training stops, and which checkpoint becomes the policy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from seqroute_ray import stages
from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.policy import PolicyArtefact, QNetwork
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.train import train

CQL = CqlConfig(hidden=(16,), risk_hidden=(8,), num_steps=1000, batch_size=64)


def falling(seen: list[QNetwork]) -> Callable[[QNetwork], dict[str, float]]:
    def evaluate(network: QNetwork) -> dict[str, float]:
        seen.append(network)
        return {"aiq": 1.0 / len(seen)}

    return evaluate


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_training_stops_when_patience_is_lost_and_the_best_checkpoint_is_the_policy(
    toy_dataset: RelabelReport, tmp_path: Path
) -> None:
    config = TrainConfig(
        dataset=toy_dataset.out, out=tmp_path / "p", cql=CQL, tune_sessions=tmp_path, checkpoint_every=250, patience=2
    )
    seen: list[QNetwork] = []
    shown: list[dict[str, float]] = []
    trained = train(config, lambda _done, _total, losses: shown.append(losses), falling(seen))
    assert [losses["aiq"] for losses in shown] == [1.0, 1 / 2, 1 / 3]
    assert (trained.num_steps, trained.metrics) == (250, {"aiq": 1.0})
    assert [c.num_steps for c in trained.checkpoints.all()] == [250, 500, 750]
    for name, array in seen[0].arrays().items():
        assert (trained.artefact.network.arrays()[name] == array).all(), name
    again = train(config, lambda *_: pytest.fail("trained on"), falling(seen))  # it knows that it has stopped
    assert again.artefact.version == trained.artefact.version


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_tune_part_judges_every_checkpoint(
    toy_dataset: RelabelReport, toy_tune_sessions: Path, tmp_path: Path
) -> None:
    cql = replace(CQL, num_steps=500)
    config = TrainConfig(
        dataset=toy_dataset.out, out=tmp_path / "p", cql=cql, tune_sessions=toy_tune_sessions, checkpoint_every=250
    )
    result = stages.train(config)
    judged = stages.tune_part(config.dataset, toy_tune_sessions)(PolicyArtefact.load(config.out).network)
    assert {name: result[name] for name in judged} == pytest.approx(judged)
    assert 0 < result["aiq"] < 1


def test_what_cannot_judge_is_refused_before_the_training(
    toy_dataset: RelabelReport, toy_sessions: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="patience 3 needs a metric to lose patience with: give --tune-sessions"):
        TrainConfig(dataset=toy_dataset.out, out=tmp_path, patience=3)
    config = TrainConfig(dataset=toy_dataset.out, out=tmp_path, tune_sessions=toy_sessions)
    with pytest.raises(DataError, match="no session of part 'tune' here, only of fit"):
        stages.train(config)
    assert read_header(toy_dataset.out).bankruptcy_penalty == 0.1
