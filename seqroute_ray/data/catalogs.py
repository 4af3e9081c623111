"""Catalog files: JSON or YAML lists of models with their prices; and models priced by a flag."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import load_outcomes


def load_catalog(path: Path | None) -> Catalog:
    """The catalog in a .json, .yaml or .yml file; None is the bundled one. Raises ConfigError naming the file."""
    if path is None:
        return load_outcomes().catalog
    if not path.is_file():
        raise ConfigError(f"{path}: no such catalog file; it is a JSON or YAML list of models with their prices")
    try:
        rows = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable catalog: {' '.join(str(error).split())}") from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ConfigError(f"{path}: a catalog is a list of models, each with name, usd_per_m_input, usd_per_m_output")
    try:
        return Catalog.from_json(rows)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def add_priced(catalog: Catalog, prices: Sequence[str]) -> Catalog:
    """The catalog and after it the models of `MODEL=INPUT/OUTPUT`, in USD per million tokens. Raises ConfigError."""
    return Catalog((*catalog.models, *(_priced(price, catalog) for price in prices)))


def _priced(price: str, catalog: Catalog) -> ModelSpec:
    name, _, usd_per_m = price.rpartition("=")
    try:
        usd_per_m_input, usd_per_m_output = map(float, usd_per_m.split("/"))
    except ValueError:
        raise ConfigError(
            f"price must be MODEL=INPUT/OUTPUT in USD per million tokens, as in my-llm=0.15/0.6, got {price!r}"
        ) from None
    if name in catalog.action_by_name:
        raise ConfigError(f"model {name!r} is in the catalog already; change its price there, not by price {price!r}")
    return ModelSpec(name=name, usd_per_m_input=usd_per_m_input, usd_per_m_output=usd_per_m_output)
