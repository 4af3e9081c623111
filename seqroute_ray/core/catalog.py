"""The pool of models: its order is the action index, its prices turn tokens into money."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError, UnknownModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the pool. Prices are USD per million tokens; 0 is a free model."""

    name: str
    usd_per_m_input: float
    usd_per_m_output: float
    family: str = ""
    size_b: float | None = None  # parameters in billions, where the name tells
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    aliases: tuple[str, ...] = ()  # other names in logs: with the provider before it, of a dated snapshot

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise ConfigError(f"a model needs a name, a text that is not empty; got {self.name!r}")
        for field in ("usd_per_m_input", "usd_per_m_output"):
            price = getattr(self, field)
            is_number = isinstance(price, int | float) and not isinstance(price, bool)
            if not (is_number and math.isfinite(price) and price >= 0):
                raise ConfigError(
                    f"model {self.name!r}: {field} must be a number >= 0 (USD per million tokens), got {price!r}"
                )
        for field in ("max_input_tokens", "max_output_tokens"):
            limit = getattr(self, field)
            if limit is not None and not limit > 0:
                raise ConfigError(f"model {self.name!r}: {field} must be > 0 or absent, got {limit!r}")
        is_list = isinstance(self.aliases, list | tuple)
        if not (is_list and all(isinstance(alias, str) and alias for alias in self.aliases)):
            raise ConfigError(f"model {self.name!r}: aliases must be a list of names, got {self.aliases!r}")
        object.__setattr__(self, "aliases", tuple(self.aliases))  # lists come from JSON and YAML


@dataclass(frozen=True)
class Catalog:
    """An ordered pool of models; the position of a model is its action."""

    models: tuple[ModelSpec, ...]

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("a catalog needs at least one model, got none")
        repeated = {name for name in self.names if self.names.count(name) > 1}
        if repeated:
            raise ConfigError(f"each model may stand in the catalog once; repeated: {sorted(repeated)}")
        for model in self.models:
            for alias in model.aliases:
                other = self.names[self.action_by_name[alias]]
                if other != model.name:
                    raise ConfigError(f"an alias may be of one model, got {alias!r} for {model.name!r} and {other!r}")

    def __len__(self) -> int:
        return len(self.models)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models)

    @cached_property
    def action_by_name(self) -> dict[str, int]:
        """The action of each name and alias."""
        by_alias = {alias: action for action, model in enumerate(self.models) for alias in model.aliases}
        return by_alias | {name: action for action, name in enumerate(self.names)}

    def action(self, name: str) -> int:
        """The action index of a model, by name or alias. Raises UnknownModelError."""
        try:
            return self.action_by_name[name]
        except KeyError:
            raise UnknownModelError(f"model {name!r} is not in the catalog; known: {', '.join(self.names)}") from None

    def select(self, names: Sequence[str]) -> "Catalog":
        """The sub-pool `names`, in that order. Raises UnknownModelError."""
        return Catalog(tuple(self.models[self.action(name)] for name in names))

    def usd_per_token(self) -> tuple[FloatArray, FloatArray]:
        """Input and output prices in USD per token, each [K]."""
        return self._usd_per_token

    @cached_property
    def _usd_per_token(self) -> tuple[FloatArray, FloatArray]:
        prices = np.array([(m.usd_per_m_input, m.usd_per_m_output) for m in self.models], dtype=np.float64) / 1e6
        prices.setflags(write=False)
        return prices[:, 0], prices[:, 1]

    def cost_usd(
        self, action: IntArray | int, prompt_tokens: IntArray | int, completion_tokens: IntArray | int
    ) -> FloatArray:
        """Price of calls in USD; arguments broadcast."""
        price_in, price_out = self.usd_per_token()
        return np.asarray(price_in[action] * prompt_tokens + price_out[action] * completion_tokens)

    def to_json(self) -> list[dict[str, Any]]:
        return [{**asdict(model), "aliases": list(model.aliases)} for model in self.models]

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> "Catalog":
        """Inverse of to_json. Raises ConfigError on a missing or unknown field."""
        try:
            return cls(tuple(ModelSpec(**row) for row in rows))
        except TypeError as error:
            raise ConfigError(f"a catalog entry has wrong fields: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of names, order and prices: what a policy's actions and costs mean."""
        prices = [(m.name, float(m.usd_per_m_input), float(m.usd_per_m_output)) for m in self.models]
        return hashlib.sha256(json.dumps(prices).encode()).hexdigest()[:16]
