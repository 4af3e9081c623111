"""The server's settings: one YAML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.storage import absolute
from seqroute_ray.serving.breaker import BreakerConfig
from seqroute_ray.serving.keys import Keys
from seqroute_ray.serving.ledgers.reaper import ReaperConfig


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is none
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
    usd_per_m_input: float = _Finite  # USD per million prompt tokens
    usd_per_m_output: float = _Finite  # USD per million completion tokens
    usd_per_m_cached_input: _OptionalPrice = None  # of prompt tokens read from the provider's cache; null: the input's
    # Of reasoning tokens that this provider counts beside completion_tokens; null: it counts them within, as OpenAI.
    usd_per_m_reasoning: _OptionalPrice = None

    @property
    def sent_model(self) -> str:
        return self.upstream_model or self.model


_Share = Field(gt=0, le=1)


class ShareSettings(BaseModel):
    """A second policy, and the share of sessions that it sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str  # folder or URI
    share: float = _Share  # of the sessions, in (0, 1]


class PolicySettings(BaseModel):
    """What decides. Also Serve's `user_config`: a change of it swaps policies without dropping a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: str | None = None  # folder or URI with manifest.json and weights.npz
    registry: str | None = None  # or a registry (core.registry): its current version and its canary, as they move
    follow_every_s: float = Field(default=10.0, gt=0, le=3600)  # between looks at the registry's pointers
    canary: ShareSettings | None = None  # decides for its share of the sessions; a registry has its own
    shadow: ShareSettings | None = None  # decides beside; its choice stands in the decision record only
    epsilon: float = Field(default=0.0, ge=0, le=1)  # chance of a uniform choice: logs to learn from need some

    @model_validator(mode="after")
    def _one_source(self) -> "PolicySettings":
        if (self.artefact is None) == (self.registry is None):
            raise ValueError("name either an artefact or a registry")
        if self.registry is not None and self.canary is not None:
            raise ValueError("a registry has its own canary: leave this one out")
        return self

    def absolute(self) -> "PolicySettings":
        """With paths that hold in any folder."""

        def share(settings: ShareSettings | None) -> ShareSettings | None:
            return settings and settings.model_copy(update={"artefact": absolute(settings.artefact)})

        changes = {
            "artefact": self.artefact and absolute(self.artefact),
            "registry": self.registry and absolute(self.registry),
            "canary": share(self.canary),
            "shadow": share(self.shadow),
        }
        return self.model_copy(update=changes)

    def locations(self) -> list[str]:
        """Of the policies; `loading.followed` has put those of a registry in."""
        named = [self.artefact, *(share.artefact for share in (self.canary, self.shadow) if share)]
        return [location for location in named if location is not None]


class ServingConfig(BaseModel):
    """Everything a replica needs to start. Relative paths start at the folder the server is started in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: PolicySettings  # what decides
    ledger: str  # path of an SQLite file on a local disk (one node), or redis://HOST:PORT/DB (many nodes)
    redis_password_env: str | None = None  # environment variable that holds Redis' password
    keys: Keys = ()  # API keys, hashed; none: anybody who reaches the port, which must be loopback
    default_budget_usd: float | None = Field(default=None, ge=1e-9, le=1e6)  # of a new session; null: header required
    default_lambda_per_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # quality per USD
    default_max_tokens: int = Field(default=1024, ge=1)  # of a request that names none
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)  # of a request; more is 413
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)  # of a request; more is 431
    idempotency_wait_s: float = Field(default=0.0, ge=0, le=3600)  # for a running request of the same key; then 409
    retries: int = Field(default=1, ge=0, le=10)  # of one model, before the next one that fits is asked
    breaker: BreakerConfig = BreakerConfig()  # when a model is left alone, see docs/upstreams.md
    reaper: ReaperConfig = ReaperConfig()  # when orphans are charged, and old answers dropped
    upstream_timeout_s: float = Field(default=120.0, gt=0, le=3600)  # of one whole provider call
    # Of a reservation above the longest call, so that no running attempt is taken for an orphan: clocks of nodes
    # differ, and a ledger may be away for seconds. The money of a killed replica's calls is held so long.
    lease_margin_s: float = Field(default=60.0, ge=1, le=3600)
    # Name, TCP and TLS: a provider that is up takes under a second, and a call that did not begin costs nothing.
    upstream_connect_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    # Of a stream, from the request to its first event. Long: a model may think before it speaks, and what it thought
    # is billed. An answer that is not streamed comes at once in the end, and has the whole time.
    upstream_first_byte_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    # Of a stream, between two receptions: a model that speaks says something every second; a dead one holds money.
    upstream_silence_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    # Of a stream that breaks off, charged beside what was seen: a provider generates, and bills, on until it notices;
    # a fast one makes 400 tokens a second. For providers that go on to the end: the most that an answer may have.
    unseen_stream_tokens: int = Field(default=256, ge=0)
    upstreams: tuple[UpstreamConfig, ...] = Field(min_length=1)  # one a model

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
        raise ConfigError(f"{path}: {one_line_of(error)}") from error
    ledger = config.ledger if "://" in config.ledger else str(Path(config.ledger).absolute())
    return config.model_copy(update={"policy": config.policy.absolute(), "ledger": ledger})


def one_line_of(error: ValidationError) -> str:
    """The first broken rule as `field: rule, got value`, and how many more there are."""
    first, *others = error.errors()
    field = "".join(f"{part}." for part in first["loc"])[:-1]
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{f'{field}: ' if field else ''}{first['msg']}{got}{more}"
