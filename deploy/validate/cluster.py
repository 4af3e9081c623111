"""cluster.yaml: Ray's own schema, and what that lets pass: limits, images, nodes, mounts."""

import copy
from pathlib import Path
from typing import Any

from jsonschema import ValidationError

from deploy.validate.aws import check_node_config, check_provider
from deploy.validate.cluster_access import check_access
from deploy.validate.cluster_commands import check_commands
from deploy.validate.fit import Node, check_replicas
from deploy.validate.pins import Pins
from deploy.validate.problems import Problem, Problems, mapping_of
from deploy.validate.serve_configs import asks_of

FILE = "cluster.yaml"
TYPES = "available_node_types"
# What must not be Ray's default: its images, limits and mounts are others, its setup installs a nightly Ray.
OWN: dict[str, type] = {
    TYPES: dict,
    "head_node_type": str,
    "max_workers": int,
    "docker": dict,
    "auth": dict,
    "file_mounts": dict,
    "setup_commands": list,
    "head_setup_commands": list,
    "worker_setup_commands": list,
}


def check_cluster(root: Path, pins: Pins) -> Problems:
    """Raises BrokenFileError."""
    config = mapping_of(root, FILE)
    broken = list(_check_schema(config))
    yield from broken
    if broken:
        return  # the rest relies on the schema
    yield from check_provider(FILE, config["provider"])
    yield from _check_limits(config)
    yield from _check_head(config)
    yield from _check_nodes(config, pins)
    yield from check_replicas(FILE, TYPES, asks_of(root), _workers(config), "max_workers")
    yield from check_access(root, FILE, config)
    yield from check_commands(root, FILE, config, pins)


def _check_schema(config: dict[str, Any]) -> Problems:
    """By the functions that `ray up` calls first."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = config.get("provider", {})
    if not isinstance(provider, dict) or provider.get("type") != "aws":
        yield Problem(FILE, "provider.type", f"{provider!r:.60}: must be aws, the only one that is checked; write aws")
        return
    missing = [name for name, kind in OWN.items() if not isinstance(config.get(name), kind)]
    for name in missing:
        got = f"{config[name]!r:.60}" if name in config else "missing"
        rule = f"must be of type {OWN[name].__name__}, or Ray takes its own default"
        yield Problem(FILE, name, f"{got}: {rule}; write it")
    if missing:
        return
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        yield Problem(
            FILE, ".".join(map(str, error.absolute_path)) or "-", f"{error.message}; see Ray's ray-schema.json"
        )
    except (ValueError, AssertionError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        yield Problem(FILE, "-", f"Ray refuses it: {error}; correct it")


def _workers(config: dict[str, Any]) -> list[Node]:
    """What the node types offer; CPUs that are not named are the instance's, and not known here."""
    return [
        Node(name, node["resources"], node.get("max_workers", config["max_workers"]))
        for name, node in config[TYPES].items()
    ]


def _check_limits(config: dict[str, Any]) -> Problems:
    most = config["max_workers"]
    for name, node in config[TYPES].items():
        low, high = node.get("min_workers", 0), node.get("max_workers", most)
        if low > high:
            yield Problem(FILE, f"{TYPES}.{name}.min_workers", f"{low}: must be at most max_workers, {high}; lower it")
        if high > most:
            where = f"{TYPES}.{name}.max_workers"
            yield Problem(FILE, where, f"{high}: must be at most max_workers of all, {most}; lower it or raise that")
    if not config.get("idle_timeout_minutes"):
        yield Problem(FILE, "idle_timeout_minutes", "0 or missing: must be above 0 for idle nodes to end; write 10")


def _check_head(config: dict[str, Any]) -> Problems:
    head, name = config[TYPES][config["head_node_type"]], config["head_node_type"]
    if head["resources"].get("CPU") != 0:
        got = head["resources"].get("CPU", "all of the instance's CPUs")
        yield Problem(FILE, f"{TYPES}.{name}.resources.CPU", f"{got}: the head must run no work; write CPU: 0")
    if head.get("max_workers", 0) != 0:
        yield Problem(FILE, f"{TYPES}.{name}.max_workers", f"{head['max_workers']}: there is one head; write 0")


def _check_nodes(config: dict[str, Any], pins: Pins) -> Problems:
    docker = config["docker"]
    for key in ("image", "head_image", "worker_image"):
        if wrong := key in docker and pins.wrong_image(str(docker[key])):
            yield Problem(FILE, f"docker.{key}", wrong)
    for name, node in config[TYPES].items():
        num_gpus = node["resources"].get("GPU", 0)
        yield from check_node_config(FILE, f"{TYPES}.{name}.node_config", node["node_config"], num_gpus)
        own = node.get("docker", {}).get("worker_image")
        if wrong := (own or num_gpus) and pins.wrong_image(own or docker.get("image", ""), bool(num_gpus)):
            yield Problem(FILE, f"{TYPES}.{name}.docker.worker_image", wrong)
