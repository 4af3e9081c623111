"""The Ray Serve application: one deployment that holds the HTTP endpoints, policy, ledger and upstream client."""

# No `from __future__ import annotations` here: it would silently disable Serve's validation of ServeArgs.
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.serving.api import Api, asgi_app
from seqroute_ray.serving.config import PolicySettings, ServingConfig, load_config, one_line_of
from seqroute_ray.serving.exposure import check_exposure
from seqroute_ray.serving.haproxy import check_hard_stop
from seqroute_ray.serving.loading import load_policies
from seqroute_ray.serving.metrics import Metrics, RayBackend
from seqroute_ray.serving.one_node import check_one_node
from seqroute_ray.serving.serve import SHUTDOWN_MARGIN_S

MAX_ONGOING_REQUESTS = 1000  # a turn waits for its provider, not for a CPU; Serve's default is 5


class ServeArgs(BaseModel):
    """The `args` of the application in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    config: str  # path of the ServingConfig YAML
    # Anything. Serve compares `args`, not the file: only another revision makes `serve deploy` read it again.
    revision: str = ""


class SeqRoute:
    """A replica; it keeps no state of its own."""

    def __init__(self, config: ServingConfig) -> None:
        _log_to_stderr()
        self._api = Api(config, Metrics(RayBackend()))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return asgi_app(self._api)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Swap policies; `user_config` is a PolicySettings. Raises ConfigError, ArtefactError: the old ones stay."""
        await self._api.service.swap(policy_settings(user_config).absolute())


def _log_to_stderr() -> None:
    """A replica's log lines, the access log among them, go where Ray collects its workers' output."""
    package = logging.getLogger("seqroute_ray")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        package.propagate = False


def policy_settings(user_config: dict[str, Any]) -> PolicySettings:
    """Raises ConfigError."""
    try:
        return PolicySettings.model_validate(user_config)
    except ValidationError as error:
        raise ConfigError(f"user_config: {one_line_of(error)}") from error


def build_app(args: ServeArgs) -> Application:
    """The bound application, after every start-up check. Raises ConfigError or ArtefactError."""
    config = load_config(Path(args.config))
    check_exposure(config)
    check_hard_stop(config)
    check_one_node(config)
    load_policies(config, config.policy)
    deployed = serve.deployment(
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=config.upstream_timeout_s + SHUTDOWN_MARGIN_S,
        logging_config=LoggingConfig(enable_access_log=False),  # ours says more (serving.edge)
    )
    # serve.ingress without an app: each replica builds its own by __serve_build_asgi_app__.
    application: Application = deployed(serve.ingress()(SeqRoute)).bind(config)
    return application
