"""Which checkpoints stay; and a killed run that goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.checkpoints import Checkpoints
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.rllib import DiscreteCQL, DiscreteCQLConfig
from seqroute_ray.training.train import checkpoints_of, out_of_patience, train

CQL = CqlConfig(hidden=(16,), risk_hidden=(8,), num_steps=1000, batch_size=64)


@dataclass
class Saved:
    """Stands for an algorithm: writes a file."""

    def save_to_path(self, path: str) -> str:
        Path(path).mkdir()
        (Path(path) / "state").write_text("all")
        return path


def save(checkpoints: Checkpoints, *aiqs: float | None) -> None:
    for i, aiq in enumerate(aiqs):
        checkpoints.save(Saved(), 100 * (i + 1), {} if aiq is None else {"aiq": aiq})


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, metric="aiq")
    assert checkpoints.newest is None
    assert checkpoints.best is None
    save(checkpoints, 0.5, 0.7, 0.6, 0.7, 0.1)
    assert [c.num_steps for c in checkpoints.all()] == [200, 400, 500]
    assert checkpoints.newest is not None
    assert checkpoints.best is not None
    assert (checkpoints.newest.num_steps, checkpoints.best.num_steps) == (500, 200)
    save(replace(checkpoints, folder=tmp_path / "b"), None, None, None)
    assert [c.num_steps for c in replace(checkpoints, folder=tmp_path / "b").all()] == [200, 300]


def test_what_a_kill_leaves_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, metric="aiq")
    (tmp_path / "unfinished-1").mkdir()
    assert checkpoints.all() == []
    save(checkpoints, None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000100"]


@pytest.mark.parametrize(("aiqs", "stops"), [((0.5, 0.7, 0.6), False), ((0.5, 0.7, 0.6, 0.6), True)])
def test_patience_counts_the_checkpoints_since_the_best(tmp_path: Path, aiqs: tuple[float, ...], stops: bool) -> None:
    config = TrainConfig(dataset="d", out=tmp_path, tune_sessions=tmp_path, checkpoint_every=100, patience=2)
    checkpoints = Checkpoints(tmp_path, keep=1, metric="aiq")
    save(checkpoints, *aiqs)
    assert out_of_patience(checkpoints, config) == stops
    assert not out_of_patience(checkpoints, replace(config, patience=None))


def test_runs_of_other_settings_or_data_have_other_checkpoints(tmp_path: Path) -> None:
    ours = Checkpoints.beside(tmp_path / "policy", {"lr": 0.1, "data": "a"}, 2, "aiq")
    assert ours.folder.parent == tmp_path / "policy.checkpoints"
    assert ours == Checkpoints.beside(tmp_path / "policy", {"data": "a", "lr": 0.1}, 2, "aiq")
    assert ours != Checkpoints.beside(tmp_path / "policy", {"lr": 0.1, "data": "b"}, 2, "aiq")


def config_of(dataset: Path, out: Path, checkpoint_every: int = 250) -> TrainConfig:
    return TrainConfig(dataset=dataset, out=out, cql=CQL, checkpoint_every=checkpoint_every)


@pytest.mark.ray
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    toy_dataset: RelabelReport, ray_cluster: str, tmp_path: Path
) -> None:
    dataset = Path(toy_dataset.out)
    whole = train(config_of(dataset, tmp_path / "whole")).artefact
    config = config_of(dataset, tmp_path / "killed")
    checkpoints = checkpoints_of(config, read_header(dataset))
    code = "import ray, sys; from tests.training.test_checkpoints import config_of, train; from pathlib import Path; "
    code += "ray.init(address=sys.argv[1], log_to_driver=False); train(config_of(*map(Path, sys.argv[2:])))"
    command = [sys.executable, "-c", code, ray_cluster, str(dataset), str(config.out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoints.all() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    newest = checkpoints.newest
    assert newest is not None
    assert newest.num_steps < CQL.num_steps
    assert not config.out.exists()
    done_before: list[int] = []
    resumed = train(config, lambda done, _total, _losses: done_before.append(done)).artefact
    assert done_before[0] == newest.num_steps + 250
    assert resumed.version == whole.version  # a hash of all weights
    for name, array in whole.network.arrays().items():
        np.testing.assert_array_equal(resumed.network.arrays()[name], array)
    assert PolicyArtefact.load(config.out).version == whole.version


@pytest.mark.ray
def test_a_finished_run_is_not_trained_again_unless_asked(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    steps: list[int] = []
    cql = replace(CQL, num_steps=20)
    config = replace(config_of(Path(toy_dataset.out), tmp_path / "policy"), cql=cql)

    def run(config: TrainConfig) -> tuple[str, int]:
        steps.clear()
        return train(config, lambda done, _total, _losses: steps.append(done)).artefact.version, len(steps)

    version, _ = run(config)
    assert run(config) == (version, 0)
    assert run(replace(config, resume=False)) == (version, 1)
    assert run(replace(config, cql=replace(cql, seed=1)))[1] == 1  # other settings, other checkpoints


@pytest.mark.ray
def test_from_checkpoint_goes_on_where_the_algorithm_was(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    dataset = toy_dataset.out
    config = DiscreteCQLConfig().offline_data(input_=dataset, dataset_num_iters_per_learner=20).debugging(seed=3)
    config = config.training(train_batch_size_per_learner=64, history_noise=0.3, lr=[[0, 1e-3], [5000, 0.0]])
    algorithm = config.build_algo()
    try:
        algorithm.train()
        saved = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        after = algorithm.train()
        restored = DiscreteCQL.from_checkpoint(saved)
        try:
            assert (restored.iteration, restored.num_steps) == (1, 20)
            again = restored.train()
            for ours, theirs in zip(states(restored), states(algorithm), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            assert losses(again) == losses(after)
            restored.restore_from_path(saved)  # back, though it was further on
            assert restored.num_steps == 20
            assert losses(restored.train()) == losses(after)
        finally:
            restored.stop()
    finally:
        algorithm.stop()


def states(algorithm: DiscreteCQL) -> list[torch.Tensor]:
    """All that learns: networks, target networks, Adam's moments and learning rate."""
    learner = algorithm.learner_group._learner
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    (optimizer,) = learner._named_optimizers.values()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    rates = [torch.tensor(group["lr"]) for group in optimizer.param_groups]
    return [*module.state_dict().values(), *moments, *rates]


def losses(result: dict[str, object]) -> dict[str, float]:
    parts: dict[str, float] = result["learners"][DEFAULT_MODULE_ID]  # type: ignore[index]
    names = ("total_loss", "td_loss", "conservative_loss", "q_mean", "q_gap", "quality_loss", "bankruptcy_loss")
    return {name: float(parts[name]) for name in names}
