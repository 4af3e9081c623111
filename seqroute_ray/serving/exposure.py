"""Who can reach the server: without API keys nobody but this machine.

Serve's HAProxy listens on every interface, whatever `http_options` say.
"""

import ipaddress
import os

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.haproxy import HAPROXY_VARIABLE


def check_exposure(config: ServingConfig, host: str | None = None) -> None:
    """Raises ConfigError when a server without keys could be reached from elsewhere.

    host: what the server will listen on; None: what the running Serve listens on.
    """
    if config.keys:
        return
    if os.environ.get(HAPROXY_VARIABLE) == "1":
        raise ConfigError(
            f"{HAPROXY_VARIABLE}=1 listens on every interface, and no API keys are configured; make one with "
            "`seqroute new-key` and add it under `keys`, or unset the variable"
        )
    host = _host_of_serve() if host is None else host
    if not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from the network, and no API keys are configured; make one with "
            "`seqroute new-key` and add it under `keys`, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of_serve() -> str:
    """Of the Serve instance that is running; loopback, its default, where there is none yet."""
    import ray

    if not ray.is_initialized():  # asking would start one
        return "127.0.0.1"
    from ray.serve.context import _get_global_client  # no public way tells

    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config.host if client is not None else "127.0.0.1"
