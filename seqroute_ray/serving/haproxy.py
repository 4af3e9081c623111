"""What Serve's HAProxy must be told so that it cuts no stream.

Whenever a replica comes or goes, a new HAProxy process takes over, and the old one is stopped hard after a while with
all its open connections, those to replicas that stay included.
"""

import os

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import ServingConfig

HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
HARD_STOP_VARIABLE = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HARD_STOP_S = 120  # Serve's default


def check_hard_stop(config: ServingConfig) -> None:
    """Raises ConfigError where a change of replicas could cut a stream that may still go on."""
    if os.environ.get(HAPROXY_VARIABLE) != "1":
        return
    hard_stop_s = int(os.environ.get(HARD_STOP_VARIABLE) or HARD_STOP_S)
    if hard_stop_s < config.upstream_timeout_s:
        raise ConfigError(
            f"upstream_timeout_s {config.upstream_timeout_s:g}: when replicas come or go, HAProxy cuts streams still "
            f"open {hard_stop_s} s later; set {HARD_STOP_VARIABLE} to at least as much before Ray starts"
        )
