"""serve_configs: Serve's own schema, the server's own settings, and what ties the two together."""

import importlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deploy.validate.docs import Docs
from deploy.validate.fit import Ask
from deploy.validate.problems import Problem, Problems, mapping_of, near, of_schema
from deploy.validate.unknown_fields import unknown_fields
from seqroute_ray.serving.app import SeqRoute, ServeArgs
from seqroute_ray.serving.config import PolicySettings, ServingConfig
from seqroute_ray.serving.exposure import is_loopback
from seqroute_ray.serving.ledgers.factory import is_redis

FOLDER = "serve_configs"
PRODUCTION = f"{FOLDER}/production.yaml"


def check_serve_configs(root: Path, docs: Docs) -> Problems:
    """Raises BrokenFileError."""
    for path in sorted((root / FOLDER).glob("*.yaml")):
        file = f"{FOLDER}/{path.name}"
        raw = mapping_of(root, file)
        yield from _check_deployed(root, file, raw) if "applications" in raw else _check_settings(file, raw, docs)


def _check_settings(file: str, raw: dict[str, Any], docs: Docs) -> Problems:
    """By the schema that the server loads it with; variables that it names must be documented."""
    try:
        settings = ServingConfig.model_validate(raw)
    except ValidationError as error:
        yield from of_schema(file, error)
        return
    named = {f"upstreams.{i}.api_key_env": each.api_key_env for i, each in enumerate(settings.upstreams)}
    named["redis_password_env"] = settings.redis_password_env
    for where, variable in named.items():
        if variable and not docs.names(variable):
            yield Problem(file, where, f"{variable}: not in docs/cluster.md; tell there what it holds, or correct it")


def _check_deployed(root: Path, file: str, raw: dict[str, Any]) -> Problems:
    yield from unknown_fields(file, ServeDeploySchema, raw)
    refused = list(_refused(file, raw))
    yield from refused
    if refused:
        return
    for index, application in enumerate(raw["applications"]):
        where = f"applications.{index}"
        yield from _check_import(file, f"{where}.import_path", application["import_path"])
        for each, deployment in enumerate(application.get("deployments", [])):
            here = f"{where}.deployments.{each}"
            if deployment["name"] != SeqRoute.__name__:
                got = deployment["name"]
                yield Problem(
                    file, f"{here}.name", f"{got}: no deployment of the application; write {SeqRoute.__name__}"
                )
            yield from _check_policy(file, f"{here}.user_config", deployment.get("user_config"))
        try:
            args = ServeArgs.model_validate(application.get("args", {}))
        except ValidationError as error:
            yield from of_schema(file, error, f"{where}.args")
            continue
        if not (root / args.config).is_file():
            known = [f"{FOLDER}/{path.name}" for path in (root / FOLDER).glob("*.yaml")]
            yield Problem(file, f"{where}.args.config", f"{args.config}: no such file; {near(args.config, known)}")
            continue
        yield from _check_together(file, where, raw, application, mapping_of(root, args.config))


def _refused(file: str, raw: dict[str, Any]) -> Problems:
    """What Serve says against it, and amounts that it does not look at."""
    try:
        ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        yield from of_schema(file, error)
        return
    except (AttributeError, TypeError) as error:  # its validators look into what may not be there
        yield Problem(file, "applications", f"Serve refuses it: {error}; correct it")
        return
    for deployment in _deployments(raw):
        where = f"deployments.{deployment['name']}"
        for name, amount in (deployment.get("ray_actor_options") or {}).get("resources", {}).items():
            if not isinstance(amount, int | float):
                yield Problem(file, f"{where}.resources.{name}", f"{amount!r}: must be a number; correct it")
        try:
            AutoscalingConfig.model_validate(deployment.get("autoscaling_config") or {})
        except ValidationError as error:
            yield from of_schema(file, error, f"{where}.autoscaling_config")


def _deployments(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for application in raw["applications"] for each in application.get("deployments", [])]


def _check_import(file: str, where: str, import_path: str) -> Problems:
    module, _, name = import_path.partition(":")
    try:
        if not hasattr(importlib.import_module(module), name):
            yield Problem(file, where, f"{import_path}: {module} has no {name}; correct it")
    except ImportError as error:
        yield Problem(file, where, f"{import_path}: cannot be imported ({error}); correct it")


def _check_policy(file: str, where: str, user_config: Any) -> Problems:
    if user_config is None:
        return
    try:
        PolicySettings.model_validate(user_config)
    except ValidationError as error:
        yield from of_schema(file, error, where)


def _check_together(
    file: str, where: str, raw: dict[str, Any], application: dict[str, Any], settings: dict[str, Any]
) -> Problems:
    """What must hold between Serve's config and the settings of the server."""
    try:
        config = ServingConfig.model_validate(settings)
    except ValidationError:
        return  # told where the settings are checked
    host = raw.get("http_options", {}).get("host", "127.0.0.1")
    if not config.keys and not is_loopback(host):
        rule = "can be reached from the network, and the settings hold no keys; add some or write 127.0.0.1"
        yield Problem(file, "http_options.host", f"{host}: {rule}")
    if raw.get("proxy_location") == "EveryNode" and not is_redis(config.ledger):
        rule = "serves from many nodes, and the settings' ledger lies on one; name redis://..."
        yield Problem(file, "proxy_location", f"EveryNode: {rule}")
    longest_s = config.upstream_timeout_s
    limits = {"http_options.request_timeout_s": raw.get("http_options", {}).get("request_timeout_s")}
    for index, deployment in enumerate(application.get("deployments", [])):
        here = f"{where}.deployments.{index}.graceful_shutdown_timeout_s"
        limits[here] = deployment.get("graceful_shutdown_timeout_s")
    for here, limit_s in limits.items():
        if limit_s is not None and limit_s <= longest_s:
            rule = f"cuts paid answers off: must be above upstream_timeout_s, {longest_s:g}; raise it"
            yield Problem(file, here, f"{limit_s:g}: {rule}")


def asks_of(root: Path) -> list[Ask]:
    """What the deployments of production.yaml ask of a cluster, at their largest. Raises BrokenFileError."""
    raw = mapping_of(root, PRODUCTION)
    if any(_refused(PRODUCTION, raw)):
        return []  # told where the file is checked
    asks = []
    for deployment in _deployments(raw):
        options = deployment.get("ray_actor_options") or {}
        resources = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
        scaled = (deployment.get("autoscaling_config") or {}).get("max_replicas") or 1
        num_replicas = deployment.get("num_replicas")
        most = num_replicas if isinstance(num_replicas, int) else scaled  # it may be "auto"
        asks.append(Ask(resources | options.get("resources", {}), most))
    return asks
