"""Whether the cluster can hold the learners: asked before the start, for Ray waits for what is missing in silence."""

from typing import Any

import ray
import torch
from ray.util import get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from seqroute_ray.core.errors import ConfigError

TIMEOUT_S = 20.0  # for resources that others may give back
WAY_OUT = "lower num_learners or num_gpus_per_learner, or add nodes"


def check_placement(config: Any, timeout_s: float = TIMEOUT_S) -> None:
    """Raises ConfigError, within half a minute, naming what the learners of an AlgorithmConfig lack.

    A trial of Ray Tune is left alone: its resources are there before it starts.
    """
    num_gpus = float(config.num_gpus_per_learner)
    if config.num_learners == 0:
        if num_gpus:
            _check_cuda([_cuda()])
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
            _check_cuda(ray.get([_probe(group, bundle, num_gpus) for bundle in range(config.num_learners)]))
    finally:
        remove_placement_group(group)


def in_words(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _cuda() -> tuple[str, bool, str]:
    """Node, whether torch sees a GPU there, version of torch."""
    return ray.util.get_node_ip_address(), torch.cuda.is_available(), str(torch.__version__)


def _probe(group: Any, bundle: int, num_gpus: float) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    return ray.remote(_cuda).options(num_cpus=0, num_gpus=num_gpus, scheduling_strategy=place).remote()


def _check_cuda(nodes: list[tuple[str, bool, str]]) -> None:
    for node, has_cuda, version in nodes:
        if not has_cuda:
            raise ConfigError(
                f"a learner asks for a GPU, but torch {version} on {node} sees none; install a torch with CUDA there "
                "(see README), or set num_gpus_per_learner to 0"
            )
