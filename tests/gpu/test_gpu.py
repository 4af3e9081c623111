"""Training on an NVIDIA GPU, against the same on the CPU; `make test-gpu`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID

from seqroute_ray.core.dataset import read_dataset, read_header
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.stages import tune_part
from seqroute_ray.training.config import CqlConfig, TrainConfig, TuneConfig
from seqroute_ray.training.cql import Heads
from seqroute_ray.training.ensemble import mean_network
from seqroute_ray.training.placement import check_placement
from seqroute_ray.training.relabeled import RelabeledData
from seqroute_ray.training.rllib import DiscreteCQL, DiscreteCQLConfig
from seqroute_ray.training.sources import open_source
from seqroute_ray.training.train import algorithm_config, checkpoints_of, make_artefact, running, train
from seqroute_ray.training.tune import tune

pytestmark = pytest.mark.gpu
CQL = CqlConfig(num_steps=1000, batch_size=512)
EVERY = 250  # gradient steps between checkpoints
ROUNDING = 1e-5  # of one pass through the network: float32, another order of sums
# Of CQL.num_steps steps on a GPU and on a CPU: Adam divides by small numbers, so rounding grows with every step.
AFTER_TRAINING = 0.02  # in turns of full quality; Q-values lie between about -1 and 6


def config_of(dataset: Path, out: Path, num_gpus: float) -> TrainConfig:
    return TrainConfig(
        dataset=dataset, out=out, cql=replace(CQL, num_gpus_per_learner=num_gpus), checkpoint_every=EVERY
    )


def settings_of(dataset: Path, cql: CqlConfig) -> DiscreteCQLConfig:
    penalty = read_header(dataset).bankruptcy_penalty
    return algorithm_config(lambda: open_source(dataset, 100.0), cql, penalty)


def states_of(dataset: Path, num_states: int = 2000) -> NDArray[np.float32]:
    data = RelabeledData.of(read_dataset(dataset))
    rows = np.random.default_rng(0).integers(0, len(data), num_states)
    return np.asarray(data.batch(rows)["obs"])


def q_values(artefact: PolicyArtefact, dataset: Path) -> NDArray[np.float32]:
    return artefact.network.values(states_of(dataset)).q_values(artefact.risk.penalties[0])


def devices_of(learner: Any) -> dict[str, set[str]]:
    """Where what learns lies, what the GPU holds of this process, and where the learner runs."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    (optimizer,) = learner._named_optimizers.values()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "network": {p.device.type for p in module.network.parameters()},
        "target": {p.device.type for p in module.target_network.parameters()},
        "moments": {moment.device.type for moment in moments},
        "memory": {"some" if torch.cuda.memory_allocated() else "none"},
        "process": {str(os.getpid())},
    }


NUMPY_ALONE = """
import sys
sys.modules |= {"torch": None, "ray": None}  # importing them fails
import numpy as np
from pathlib import Path
from seqroute_ray.core.policy import PolicyArtefact
folder = Path(sys.argv[1])
artefact = PolicyArtefact.load(folder / "policy")
values = artefact.network.values(np.load(folder / "states.npy"))
np.save(folder / "q.npy", values.q_values(artefact.risk.penalties[0]))
"""


def test_a_learner_of_its_own_trains_on_the_gpu_and_its_policy_needs_numpy_alone(
    toy_dataset: Path, tmp_path: Path
) -> None:
    header = read_header(toy_dataset)
    cql = replace(CQL, num_learners=1, num_gpus_per_learner=1)
    with running(settings_of(toy_dataset, cql)) as algorithm:
        losses = [float(algorithm.train()["learners"][DEFAULT_MODULE_ID]["td_loss"]) for _ in range(4)]
        (found,) = (result.get() for result in algorithm.learner_group.foreach_learner(devices_of))
        network = algorithm.network()
    print("td_loss by iteration:", losses)
    assert found.pop("process") != {str(os.getpid())}
    assert found == {"network": {"cuda"}, "target": {"cuda"}, "moments": {"cuda"}, "memory": {"some"}}
    assert losses[-1] < losses[0]
    make_artefact(header, mean_network(network), cql).save(tmp_path / "policy")
    states = states_of(toy_dataset)
    np.save(tmp_path / "states.npy", states)
    subprocess.run([sys.executable, "-c", NUMPY_ALONE, tmp_path], check=True)
    with torch.no_grad():
        heads = Heads.of(network.to("cuda")(torch.from_numpy(states).to("cuda")))
        ours = heads.q_values(header.bankruptcy_penalty).cpu().numpy()
    differences = np.abs(np.load(tmp_path / "q.npy") - ours)
    print("largest difference of Q, numpy and GPU:", differences.max())
    assert differences.max() <= ROUNDING  # also what TF32 would break: it keeps 3 digits


@pytest.fixture(scope="module")
def whole(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicyArtefact:
    """Of a run on the GPU that nobody disturbed."""
    return train(config_of(toy_dataset, tmp_path_factory.mktemp("whole") / "policy", 1)).artefact


def test_the_gpu_and_the_cpu_learn_the_same_from_the_same_seed(
    toy_dataset: Path, whole: PolicyArtefact, tmp_path: Path
) -> None:
    untrained = train(
        replace(config_of(toy_dataset, tmp_path / "one", 0), cql=replace(CQL, num_steps=1, lr=1e-9))
    ).artefact
    on_cpu = train(config_of(toy_dataset, tmp_path / "cpu", 0)).artefact
    again = train(config_of(toy_dataset, tmp_path / "again", 1)).artefact
    differences = np.abs(q_values(on_cpu, toy_dataset) - q_values(whole, toy_dataset))
    learned = np.abs(q_values(on_cpu, toy_dataset) - q_values(untrained, toy_dataset))
    print("difference of Q, CPU and GPU: mean", differences.mean(), "largest", differences.max())
    print("difference of Q, trained and not: mean", learned.mean())
    assert differences.max() <= AFTER_TRAINING
    assert differences.mean() < learned.mean() / 20  # the tolerance is no excuse: training moved Q by far more
    assert again.version == whole.version  # on one GPU bit for bit


def kill_after_a_checkpoint(config: TrainConfig) -> int:
    """Start a run as a process, kill it when its first checkpoint is there; the steps that it leaves behind."""
    checkpoints = checkpoints_of(config, read_header(config.dataset))
    words = (config.dataset, config.out, config.cql.num_gpus_per_learner)
    process = subprocess.Popen([sys.executable, "-m", "tests.gpu.train_here", *map(str, words)])
    deadline = time.monotonic() + 120
    while not checkpoints.all() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoints.newest is not None
    assert not config.out.exists()
    return checkpoints.newest.num_steps


def test_a_run_killed_on_the_gpu_goes_on_there_and_where_there_is_none(
    toy_dataset: Path, whole: PolicyArtefact, tmp_path: Path
) -> None:
    config = config_of(toy_dataset, tmp_path / "killed", 1)
    num_steps = kill_after_a_checkpoint(config)
    assert 0 < num_steps < CQL.num_steps
    shutil.copytree(tmp_path / "killed.checkpoints", tmp_path / "moved.checkpoints")
    done: list[int] = []
    resumed = train(config, lambda steps, _total, _losses: done.append(steps)).artefact
    assert done[0] == num_steps + 250
    assert resumed.version == whole.version  # bit for bit: a hash of all weights
    moved = config_of(toy_dataset, tmp_path / "moved", 0)
    command = [sys.executable, "-m", "tests.gpu.train_here", str(toy_dataset), str(moved.out), "0"]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    differences = np.abs(q_values(PolicyArtefact.load(moved.out), toy_dataset) - q_values(whole, toy_dataset))
    print("difference of Q, resumed without a GPU: mean", differences.mean(), "largest", differences.max())
    assert differences.max() <= AFTER_TRAINING


@contextmanager
def no_waiting(algorithm: DiscreteCQL) -> Iterator[list[int]]:
    """Within a gradient step torch raises where this process would wait for the GPU. Yields [steps done]."""
    learner, done = algorithm.learner_group._learner, [0]
    step = learner._update

    def watched(batch: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            done[0] += 1

    learner._update = watched
    yield done
    learner._update = step


def test_a_gradient_step_never_waits_for_the_gpu_nor_after_a_restart(toy_dataset: Path, tmp_path: Path) -> None:
    cql = replace(CQL, num_steps=100, num_gpus_per_learner=1)
    with running(settings_of(toy_dataset, cql)) as algorithm:
        with no_waiting(algorithm) as done:
            algorithm.train()
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        assert done == [100]
    with running(settings_of(toy_dataset, cql)) as algorithm:
        algorithm.restore_from_path(tmp_path / "checkpoint")
        with no_waiting(algorithm) as done:
            algorithm.train()
        assert done == [100]
        assert algorithm.num_steps == 200


def test_trials_of_a_search_share_the_gpu(toy_dataset: Path, tune_sessions: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        dataset=toy_dataset,
        tune_sessions=tune_sessions,
        out=tmp_path / "search",
        cql=replace(CQL, num_steps=500, num_gpus_per_learner=0.5),
        search=("lr",),
        num_trials=2,
        judge_every=250,
        grace_steps=250,
    )
    tuned = tune(config, tune_part(toy_dataset, tune_sessions))
    assert (tuned.num_trials, tuned.num_errors) == (2, 0)
    assert {row["num_steps"] for row in tuned.rows} == {250, 500}


def test_what_the_gpus_cannot_hold_is_refused_before_the_start() -> None:
    num_gpus = torch.cuda.device_count()
    assert ray.cluster_resources()["GPU"] == num_gpus  # Ray found them by itself
    too_many = DiscreteCQLConfig().learners(num_learners=num_gpus + 1, num_gpus_per_learner=1)
    with pytest.raises(ConfigError, match=f"need {num_gpus + 1} GPU, the cluster has {num_gpus} GPU; lower"):
        check_placement(too_many)
    with pytest.raises(ConfigError, match=f"asks for {num_gpus + 1} GPUs, but torch on .* sees {num_gpus}; set"):
        check_placement(DiscreteCQLConfig().learners(num_learners=0, num_gpus_per_learner=num_gpus + 1))
    check_placement(DiscreteCQLConfig().learners(num_learners=1, num_gpus_per_learner=0.5))
    with pytest.raises(ConfigError, match=r"2 learners would share the GPU 0 of .*, which NCCL does not allow; set"):
        check_placement(DiscreteCQLConfig().learners(num_learners=2, num_gpus_per_learner=0.5 / num_gpus))


ONE_OF_TWO = """
import sys, torch
from torch import distributed
distributed.init_process_group("nccl", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
distributed.all_reduce(torch.ones(1, device="cuda:0"))
torch.cuda.synchronize()
"""


def test_nccl_indeed_refuses_two_processes_on_one_gpu() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    both = [
        subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, url, rank], stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert all(process.returncode for process in both)
    assert any("Duplicate GPU" in error for error in errors), errors
