"""An SQLite ledger is a file of one machine: on several, each would keep its own books, and sell each budget anew."""

import ray

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.ledgers.factory import is_redis

NO_WORK = ("memory", "object_store_memory", "node:", "accelerator_type:")  # resources that every node has


def check_one_node(config: ServingConfig) -> None:
    """Raises ConfigError when an SQLite ledger's replicas could be on several nodes of the Ray that runs."""
    if is_redis(config.ledger) or not ray.is_initialized():
        return
    nodes = [node for node in ray.nodes() if node["Alive"] and _can_work(node["Resources"])]
    if len(nodes) > 1:
        raise ConfigError(
            f"ledger {config.ledger} is a file, and each of the {len(nodes)} nodes that may hold replicas would have "
            "its own: a session could spend its budget on every one; name a redis:// URL"
        )


def _can_work(resources: dict[str, float]) -> bool:
    return any(amount > 0 and not name.startswith(NO_WORK) for name, amount in resources.items())
