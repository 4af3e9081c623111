"""From settings to loaded policies: every check that comes before the first request."""

import math
import os
import tempfile
from pathlib import Path

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.policy import MANIFEST, WEIGHTS, PolicyArtefact
from seqroute_ray.core.registry import Registry
from seqroute_ray.core.storage import Folder, local_path, one_line
from seqroute_ray.serving.config import PolicySettings, ServingConfig, ShareSettings
from seqroute_ray.serving.policies import Policies
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.prompt_tokens import load_tokenizer


def load_policies(config: ServingConfig, settings: PolicySettings) -> Policies:
    """The policies, after every start-up check; `settings` of the result name artefacts, no registry.

    Raises ArtefactError or ConfigError.
    """
    settings = followed(settings)
    check_keys(config)
    load_tokenizer()  # else the first request waits for it
    artefacts = {location: fetch_artefact(location) for location in dict.fromkeys(settings.locations())}
    for artefact in artefacts.values():
        check_upstreams(config, artefact.catalog)
    pricing = {upstream.model: Pricing.of(upstream) for upstream in config.upstreams}
    return Policies(settings, artefacts, pricing, config.default_max_tokens)


def followed(settings: PolicySettings) -> PolicySettings:
    """With the artefacts that the registry points at now, where it is one. Raises ConfigError, ArtefactError."""
    if settings.registry is None:
        return settings
    registry = Registry(settings.registry)
    pointers = registry.pointers()
    if not pointers.current:
        raise ConfigError(
            f"registry {settings.registry}: no version is current; `seqroute registry promote` makes one so"
        )
    canary = None
    if pointers.canary:
        canary = ShareSettings(artefact=registry.location_of(pointers.canary), share=pointers.canary_share)
    changes = {"artefact": registry.location_of(pointers.current), "registry": None, "canary": canary}
    return settings.model_copy(update=changes)


def fetch_artefact(location: str) -> PolicyArtefact:
    """A policy from a folder or a URI. Raises ArtefactError, ConfigError."""
    if local_path(location) is not None:
        return PolicyArtefact.load(Path(location))
    remote = Folder.at(location)
    with tempfile.TemporaryDirectory() as scratch:
        for name in (WEIGHTS, MANIFEST):
            try:
                (Path(scratch) / name).write_bytes(remote.read(name))
            except OSError as error:
                raise ArtefactError(f"{location}/{name}: cannot be read ({one_line(error)})") from error
        return PolicyArtefact.load(Path(scratch))


def check_upstreams(config: ServingConfig, catalog: Catalog) -> None:
    """Each model of the catalog has exactly one upstream, at the price it was trained for. Raises ConfigError.

    An upstream of no model waits for a policy that knows it: pools change by a swap of policies.
    """
    names = [upstream.model for upstream in config.upstreams]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"upstream {name!r} is named {names.count(name)} times; name each model once")
    missing = [name for name in catalog.names if name not in names]
    if missing:
        raise ConfigError(f"the policy routes to {', '.join(missing)}, which no upstream serves; add one for each")
    for upstream in config.upstreams:
        if upstream.model not in catalog.names:
            continue
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
