"""Run the server: checks first, then Ray and Serve, or uvicorn alone; as a context manager or until interrupted."""

import logging
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.ray_session import ray_session
from seqroute_ray.serving.config import ServingConfig, load_config
from seqroute_ray.serving.exposure import check_exposure
from seqroute_ray.serving.haproxy import check_hard_stop
from seqroute_ray.serving.loading import load_policies

APP_NAME = "seqroute"
SHUTDOWN_MARGIN_S = 30.0  # above the longest call: a server that goes finishes its paid turns
READY_TIMEOUT_S = 120.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One server on this machine. Each field is a flag of `seqroute serve`."""

    config: Path  # the ServingConfig YAML
    host: str = "127.0.0.1"  # another one opens it to the network, which needs API keys
    port: int = 8000  # of the API
    server: Literal["ray", "uvicorn"] = "ray"  # Ray Serve, which scales out; or this process alone, without Ray
    replay_upstream: bool = False  # also run the stand-in for the providers, where the YAML's base_url points to

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"port must be in [1, 65535], got {self.port}")


def serve_forever(config: ServeConfig) -> None:
    """Serve until interrupted. Raises ConfigError, ArtefactError or LedgerUnavailable before anything starts."""
    if config.server == "uvicorn":
        _serve_alone(config)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop like Ctrl-C: Serve's replicas end their turns
    with running_server(config) as base_url:
        logger.info("serving base_url=%s/v1 stop=ctrl-c", base_url)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            logger.info("stopping")


def _serve_alone(config: ServeConfig) -> None:
    """The same application in this process, until interrupted; then its paid turns end first."""
    import uvicorn

    from seqroute_ray.serving.api import make_api

    serving = load_config(config.config)
    check_exposure(serving, config.host)
    _check_ledger(serving)
    with _replay(config, serving):
        app = make_api(serving)
        logger.info("serving base_url=http://%s:%d/v1 stop=ctrl-c", config.host, config.port)
        patience_s = round(serving.upstream_timeout_s + SHUTDOWN_MARGIN_S)
        uvicorn.run(
            app,
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=patience_s,
        )


@contextmanager
def running_server(config: ServeConfig) -> Iterator[str]:
    """The server while the block runs; yields `http://host:port` once /healthz answers.

    Joins a Ray that runs in this process, else starts one and stops it in the end. Raises ConfigError, ArtefactError
    or LedgerUnavailable before Ray starts.
    """
    serving = load_config(config.config)
    check_exposure(serving, config.host)
    check_hard_stop(serving)
    load_policies(serving, serving.policy)
    _check_ledger(serving)
    with _replay(config, serving), ray_session() as started_here, ExitStack() as stack:
        from ray import serve  # loaded after the checks: it takes seconds

        from seqroute_ray.serving.app import ServeArgs, build_app
        from seqroute_ray.serving.one_node import check_one_node

        check_one_node(serving)
        serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
        if not started_here:  # else Serve ends with Ray
            stack.callback(serve.shutdown)
        serve.run(build_app(ServeArgs(config=str(config.config))), name=APP_NAME, route_prefix="/")
        base_url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"  # nosec B104  # noqa: S104
        _wait_until_ready(base_url)
        yield base_url


def _check_ledger(serving: ServingConfig) -> None:
    from seqroute_ray.serving.ledgers.factory import check_ledger  # with its store, which `seqroute --help` can spare

    check_ledger(serving.ledger, serving.redis_password_env)


def _replay(config: ServeConfig, serving: ServingConfig) -> AbstractContextManager[str]:
    """The stand-in at the address that all upstreams share, where it is asked for. Raises ConfigError."""
    if not config.replay_upstream:
        return nullcontext("")
    base_urls = {upstream.base_url for upstream in serving.upstreams}
    address = urlsplit(min(base_urls))
    if len(base_urls) > 1 or address.hostname != "127.0.0.1" or not address.port or address.path != "/v1":
        raise ConfigError(
            f"replay_upstream needs one base_url http://127.0.0.1:PORT/v1 for all upstreams, got {sorted(base_urls)}"
        )
    from seqroute_ray.serving.replay_upstream import running_replay_upstream  # the only use of the bundled sample

    return running_replay_upstream(address.port)


def _wait_until_ready(base_url: str) -> None:
    """Return once GET /readyz is 200. Raises TimeoutError."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{base_url}/readyz", timeout=5) as response:  # nosec B310  # noqa: S310 - our own address
                response.read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"{base_url}/readyz did not answer in {READY_TIMEOUT_S:.0f} s")
