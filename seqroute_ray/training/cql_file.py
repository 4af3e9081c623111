"""Settings of training as a JSON file, which `seqroute tune` writes and `seqroute train --config` reads."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.storage import one_line
from seqroute_ray.training.config import CqlConfig, TrainConfig


def write_cql(config: CqlConfig, path: Path) -> None:
    path.write_text(json.dumps(asdict(config), indent=1) + "\n")


def read_cql(path: Path) -> CqlConfig:
    """Raises ConfigError when it is no JSON object of fields of CqlConfig."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not readable settings ({one_line(error)}); `seqroute tune` writes such a file"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: settings are a JSON object, got a {type(values).__name__}")
    unknown = sorted(values.keys() - {field.name for field in fields(CqlConfig)})
    if unknown:
        raise ConfigError(f"{path}: no setting is called {unknown[0]!r}; see `seqroute train --help` for their names")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        return CqlConfig(**settings)
    except TypeError as error:
        raise ConfigError(f"{path}: a setting is of a wrong type ({error})") from error


def with_file(config: TrainConfig) -> TrainConfig:
    """The settings of config.config, where it is given, in place of the --cql flags. Raises ConfigError."""
    if config.config is None:
        return config
    if config.cql != CqlConfig():
        raise ConfigError(f"--config {config.config} and --cql flags contradict each other; give one of them")
    return replace(config, cql=read_cql(config.config), config=None)
