"""Whether the cluster can hold the learners: asked before the start, for Ray waits for what is missing in silence."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util import get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from seqroute_ray.core.errors import ConfigError

TIMEOUT_S = 20.0  # for resources that others may give back
WAY_OUT = "lower num_learners or num_gpus_per_learner, or add nodes"


@dataclass(frozen=True)
class Cuda:
    """What torch sees where a learner would be."""

    node: str
    torch_version: str
    num_gpus: int
    gpu: str  # which of them Ray gave it; empty in a process that is not a worker of Ray


def check_placement(config: Any, timeout_s: float = TIMEOUT_S) -> None:
    """Raises ConfigError, within half a minute, naming what the learners of an AlgorithmConfig lack.

    A trial of Ray Tune is left alone: its resources are there before it starts.
    """
    num_gpus = float(config.num_gpus_per_learner)
    if config.num_learners == 0:
        if num_gpus:
            check_cuda([_cuda()], num_gpus)
        return
    if get_current_placement_group() is not None:
        return
    num_cpus = float(config.num_cpus_per_learner) if config.num_cpus_per_learner != "auto" else float(num_gpus == 0)
    each = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    each |= config.custom_resources_per_learner or {}
    if not each:
        return
    asked = f"{config.num_learners} learners of {in_words(each)} each"
    total = ray.cluster_resources()
    lacking = {name: config.num_learners * amount for name, amount in each.items()}
    lacking = {name: amount for name, amount in lacking.items() if amount > total.get(name, 0)}
    if lacking:
        has = in_words({name: total.get(name, 0) for name in lacking})
        raise ConfigError(f"{asked} need {in_words(lacking)}, the cluster has {has}; {WAY_OUT}")
    group = placement_group([each] * config.num_learners)
    try:
        if not group.wait(timeout_s):
            free = in_words({name: ray.available_resources().get(name, 0) for name in each})
            raise ConfigError(
                f"{asked} found no room within {timeout_s:g} s: free are {free}, and one learner must fit on one node; "
                f"{WAY_OUT}, or wait for other work to end"
            )
        if num_gpus:
            check_cuda(ray.get([_probe(group, bundle, num_gpus) for bundle in range(config.num_learners)]), num_gpus)
    finally:
        remove_placement_group(group)


def in_words(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _cuda() -> Cuda:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu = ",".join(map(str, ray.get_gpu_ids()))
    return Cuda(ray.util.get_node_ip_address(), str(torch.__version__), num_gpus, gpu)


def _probe(group: Any, bundle: int, num_gpus: float) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    return ray.remote(_cuda).options(num_cpus=0, num_gpus=num_gpus, scheduling_strategy=place).remote()


def check_cuda(learners: list[Cuda], num_gpus: float) -> None:
    """Raises ConfigError where a learner's torch sees too few GPUs of the num_gpus, or two learners share one."""
    for learner in learners:
        if learner.num_gpus == 0:
            raise ConfigError(
                f"a learner asks for a GPU, but torch {learner.torch_version} on {learner.node} sees none; install a "
                "torch with CUDA there (see README), or set num_gpus_per_learner to 0"
            )
        if learner.num_gpus < num_gpus:
            raise ConfigError(
                f"a learner asks for {num_gpus:g} GPUs, but torch on {learner.node} sees {learner.num_gpus}; set "
                "num_gpus_per_learner to 1: a learner computes on one"
            )
    (gpu, num_learners), *_ = Counter((learner.node, learner.gpu) for learner in learners).most_common(1)
    if num_learners > 1:  # NCCL, by which they share their gradients, refuses, in pages that name neither
        raise ConfigError(
            f"{num_learners} learners would share the GPU {gpu[1]} of {gpu[0]}, which NCCL does not allow; set "
            "num_gpus_per_learner to 1, or train with one learner"
        )
