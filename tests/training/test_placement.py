"""Learners that the cluster cannot hold: an error that names what is missing, in time. On logical GPUs."""

import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from ray.util import placement_group, remove_placement_group

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.training.placement import TIMEOUT_S, Cuda, check_cuda, check_placement
from seqroute_ray.training.rllib import DiscreteCQLConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def learners(num_learners: int, **each: Any) -> DiscreteCQLConfig:
    config: DiscreteCQLConfig = DiscreteCQLConfig().learners(num_learners=num_learners, **each)
    return config


def test_more_learners_than_cpus_are_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="5 learners of 1 CPU each need 5 CPU, the cluster has 4 CPU; lower"):
        check_placement(learners(5))
    with pytest.raises(ConfigError, match="3 learners of 2 CPU each need 6 CPU, the cluster has 4"):
        check_placement(learners(3, num_cpus_per_learner=2))
    assert time.monotonic() - started < TIMEOUT_S  # nothing was waited for
    check_placement(learners(2))


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="2 learners of 1 GPU each need 2 GPU, the cluster has 0 GPU; lower"):
        check_placement(learners(2, num_gpus_per_learner=1))
    with pytest.raises(ConfigError, match="1 learners of 1 CPU and 3 TPU each need 3 TPU, the cluster has 0"):
        check_placement(learners(1, custom_resources_per_learner={"TPU": 3}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_a_gpu_without_cuda_in_this_process_is_named() -> None:
    with pytest.raises(ConfigError, match=r"asks for a GPU, but torch .* sees none; install a torch with CUDA"):
        check_placement(learners(0, num_gpus_per_learner=1))


def test_more_gpus_than_torch_sees_and_a_gpu_of_two_learners_are_named() -> None:
    here, there = Cuda("10.0.0.1", "2.9", 1, "0"), Cuda("10.0.0.2", "2.9", 1, "0")
    check_cuda([here, there], 0.5)
    with pytest.raises(ConfigError, match=r"asks for 2 GPUs, but torch on 10.0.0.1 sees 1; set num_gpus_per_learner"):
        check_cuda([here], 2)
    with pytest.raises(ConfigError, match=r"2 learners would share the GPU 0 of 10.0.0.2, which NCCL does not allow"):
        check_cuda([here, there, there], 0.5)


def test_the_algorithm_asks_before_it_starts(toy_dataset: Any) -> None:
    config = learners(2, num_gpus_per_learner=1).offline_data(input_=toy_dataset.out)
    with pytest.raises(ConfigError, match="need 2 GPU, the cluster has 0"):
        config.training(train_batch_size_per_learner=64).build_algo()


def test_resources_that_others_hold_are_waited_for_in_vain_and_named() -> None:
    assert TIMEOUT_S < 30

    others = placement_group([{"CPU": 3}])
    assert others.wait(30)
    with pytest.raises(ConfigError, match="2 learners of 1 CPU each found no room within 1 s: free are 1 CPU"):
        check_placement(learners(2), timeout_s=1.0)
    remove_placement_group(others)


ON_LOGICAL_GPUS = """
import ray
from ray.cluster_utils import Cluster
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.training.placement import check_placement
from seqroute_ray.training.rllib import DiscreteCQLConfig

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
cluster.add_node(num_cpus=1, num_gpus=1)
ray.init(address=cluster.address, log_to_driver=False)
for num_learners, num_gpus in ((2, 1), (3, 1), (1, 2)):
    try:
        check_placement(DiscreteCQLConfig().learners(num_learners=num_learners, num_gpus_per_learner=num_gpus), 3.0)
        print("placed")
    except ConfigError as error:
        print(error)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_learners_are_placed_on_logical_gpus_and_a_torch_without_cuda_is_found_there() -> None:
    done = subprocess.run([sys.executable, "-c", ON_LOGICAL_GPUS], capture_output=True, text=True, check=True)
    placed, too_many, too_wide = done.stdout.splitlines()[-3:]
    assert "a learner asks for a GPU, but torch" in placed  # it was placed, or nobody could have looked there
    assert "3 learners of 1 GPU each need 3 GPU, the cluster has 2" in too_many
    assert "1 learners of 2 GPU each found no room within 3 s: free are 2 GPU, and one learner must fit" in too_wide
