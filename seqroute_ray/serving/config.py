"""The server's settings: one YAML file, checked against the policy artefact before anything starts."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import PolicyArtefact


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://HOST/PATH or https://HOST/PATH")
    return url.rstrip("/")


_Finite = Field(ge=0, allow_inf_nan=False)
_OptionalPrice = Annotated[float | None, _Finite]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTimeouts:
    """How long a provider may take, in seconds; defaults and reasons stand in ServingConfig."""

    connect_s: float
    first_byte_s: float
    silence_s: float
    total_s: float


class UpstreamConfig(BaseModel):
    """Where one model of the catalog is called, and at which prices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str  # name in the artefact's catalog
    base_url: Annotated[str, AfterValidator(_http_url)]  # up to and with /v1
    api_key_env: str | None = None  # environment variable that holds the key; the key itself never stands in a file
    upstream_model: str = ""  # name that the provider knows; empty: the catalog's
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # the one this provider obeys
    usd_per_m_input: float = _Finite
    usd_per_m_output: float = _Finite
    usd_per_m_cached_input: _OptionalPrice = None  # of prompt tokens read from the provider's cache; null: the input's
    # Of reasoning tokens that this provider counts beside completion_tokens; null: it counts them within, as OpenAI.
    usd_per_m_reasoning: _OptionalPrice = None

    @property
    def sent_model(self) -> str:
        return self.upstream_model or self.model


class ServingConfig(BaseModel):
    """Everything a replica needs to start. Relative paths start at the folder the server is started in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact_dir: Path  # folder with manifest.json and weights.npz
    ledger_path: Path  # SQLite file; a local disk
    default_budget_usd: float | None = Field(default=None, ge=1e-9, le=1e9)  # of a new session; null: header required
    default_lambda_per_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # quality per USD
    default_max_tokens: int = Field(default=1024, ge=1)  # of a request that names none
    upstream_timeout_s: float = Field(default=120.0, gt=0, le=3600)  # of one whole provider call
    # Name, TCP and TLS: a provider that is up takes under a second, and a call that did not begin costs nothing.
    upstream_connect_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    # Of a stream, from the request to its first event. Long: a model may think before it speaks, and what it thought
    # is billed. An answer that is not streamed comes at once in the end, and has the whole time.
    upstream_first_byte_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    # Of a stream, between two receptions: a model that speaks says something every second; a dead one holds money.
    upstream_silence_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    upstreams: tuple[UpstreamConfig, ...] = Field(min_length=1)

    @property
    def upstream_timeouts(self) -> UpstreamTimeouts:
        return UpstreamTimeouts(
            connect_s=self.upstream_connect_timeout_s,
            first_byte_s=self.upstream_first_byte_timeout_s,
            silence_s=self.upstream_silence_timeout_s,
            total_s=self.upstream_timeout_s,
        )


def load_config(path: Path) -> ServingConfig:
    """Read the YAML file; paths become absolute. Raises ConfigError naming file, field and rule."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); see serve_configs/ for an example") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a mapping of settings, got {type(raw).__name__}")
    try:
        config = ServingConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    absolute = {name: getattr(config, name).absolute() for name in ("artefact_dir", "ledger_path")}
    return config.model_copy(update=absolute)


def _one_line(error: ValidationError) -> str:
    """The first broken rule as `field: rule, got value`, and how many more there are."""
    first, *others = error.errors()
    field = ".".join(str(part) for part in first["loc"])
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{field}: {first['msg']}{got}{more}"


def load_artefact(config: ServingConfig) -> PolicyArtefact:
    """The policy, after every start-up check. Raises ArtefactError or ConfigError."""
    artefact = PolicyArtefact.load(config.artefact_dir)
    check_upstreams(config, artefact.catalog)
    check_keys(config)
    return artefact


def check_upstreams(config: ServingConfig, catalog: Catalog) -> None:
    """Each model of the catalog has exactly one upstream, at the price it was trained for. Raises ConfigError."""
    names = [upstream.model for upstream in config.upstreams]
    known = ", ".join(catalog.names)
    for name in names:
        if name not in catalog.names:
            raise ConfigError(f"upstream {name!r} is not in the policy's catalog; known: {known}")
        if names.count(name) > 1:
            raise ConfigError(f"upstream {name!r} is named {names.count(name)} times; name each model once")
    missing = [name for name in catalog.names if name not in names]
    if missing:
        raise ConfigError(f"the policy routes to {', '.join(missing)}, which no upstream serves; add one for each")
    for upstream in config.upstreams:
        model = catalog.models[catalog.action(upstream.model)]
        for field in ("usd_per_m_input", "usd_per_m_output"):
            trained, priced = getattr(model, field), getattr(upstream, field)
            if not math.isclose(trained, priced, rel_tol=1e-9):
                raise ConfigError(
                    f"upstream {upstream.model!r}: {field} is {priced:g}, the policy was trained for {trained:g}; "
                    "correct the price or train again"
                )


def check_keys(config: ServingConfig) -> None:
    """Every named API key is set. Raises ConfigError."""
    for upstream in config.upstreams:
        if upstream.api_key_env and not os.environ.get(upstream.api_key_env):
            raise ConfigError(
                f"upstream {upstream.model!r}: the environment variable {upstream.api_key_env} is not set; "
                "export the key or remove api_key_env"
            )
