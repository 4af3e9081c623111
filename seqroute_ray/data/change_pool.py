"""Files around core.pool_change: read a policy, change its pool, write the changed policy to another folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.pool_change import add_model, remove_model
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.data.catalogs import load_catalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddModelConfig:
    """A model for a trained policy. Each field is a flag of `seqroute add-model`."""

    policy: Path  # artefact folder; stays as it is
    model: str  # its name in the catalog
    out: Path  # folder of the new artefact
    sessions: Path | None = None  # session Parquet with turns it answered; None: its metadata must do
    catalog: Path | None = None  # JSON or YAML list of models and prices; None is the bundled catalog

    def __post_init__(self) -> None:
        _check_out(self.policy, self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveModelConfig:
    """A model that leaves a trained policy's pool. Each field is a flag of `seqroute remove-model`."""

    policy: Path  # artefact folder; stays as it is
    model: str  # its name in the policy
    out: Path  # folder of the new artefact

    def __post_init__(self) -> None:
        _check_out(self.policy, self.out)


def _check_out(policy: Path, out: Path) -> None:
    if policy.resolve() == out.resolve():
        raise ConfigError(f"out must be another folder than policy, got {out} for both")


def add_model_to_policy(config: AddModelConfig) -> PolicyArtefact:
    """Write the policy over the larger pool. Raises ArtefactError, ConfigError, DataError, UnknownModelError."""
    artefact, catalog = PolicyArtefact.load(config.policy), load_catalog(config.catalog)
    sessions = None if config.sessions is None else read_sessions(config.sessions)
    if sessions is not None and sessions.embedder != artefact.embedder:
        raise DataError(f"{config.sessions}: embedded by {sessions.embedder!r}, the policy by {artefact.embedder!r}")
    if sessions is not None and config.model not in sessions.catalog.names:
        raise DataError(
            f"{config.sessions}: no turn of model {config.model!r}, only of {', '.join(sessions.catalog.names)}; "
            "leave --sessions out to add it by metadata alone"
        )
    changed = add_model(artefact, catalog.models[catalog.action(config.model)], sessions)
    return _saved(changed, artefact, config.out)


def remove_model_from_policy(config: RemoveModelConfig) -> PolicyArtefact:
    """Write the policy over the smaller pool. Raises ArtefactError, ConfigError, UnknownModelError."""
    artefact = PolicyArtefact.load(config.policy)
    return _saved(remove_model(artefact, config.model), artefact, config.out)


def _saved(changed: PolicyArtefact, before: PolicyArtefact, out: Path) -> PolicyArtefact:
    changed.save(out)
    if before.estimator.risk is not None:
        logger.warning("event=plan_dropped why='it is of the old pool' remedy='seqroute calibrate --policy %s'", out)
    return changed
