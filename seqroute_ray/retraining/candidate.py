"""The policy of a round: trained from the joined sessions, the current one over another pool, or one that is given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seqroute_ray import stages
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.policy import HEADS, PolicyArtefact
from seqroute_ray.core.pool_change import add_model, remove_model
from seqroute_ray.core.registry import Registry
from seqroute_ray.core.sessions import Sessions, observed_outcomes, read_sessions
from seqroute_ray.data.catalogs import load_catalog
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.training.config import CqlConfig, TrainConfig

DATASET, TRAINED = "dataset", "trained"  # beside the policy


def save_current(registry: Registry, version: str, out: Path) -> None:
    """A copy of the version to beat: pointers may move while a round is under way."""
    registry.load(version).save(out)


def pool_of(config: RetrainConfig, current: Path) -> tuple[Catalog, str]:
    """Models that the logs of a round may have, and the embedder. Raises UnknownModelError."""
    artefact = PolicyArtefact.load(current)
    if config.catalog is None:
        return artefact.catalog, artefact.embedder
    catalog = load_catalog(config.catalog)
    if config.add_model is not None:
        catalog = catalog.select((*artefact.catalog.names, config.add_model))
    return catalog, artefact.embedder


def make_candidate(config: RetrainConfig, sessions: Path, current: Path, out: Path) -> dict[str, Any]:
    """Write the artefact to `out`; returns how it came about."""
    if config.candidate is not None:
        artefact, made = PolicyArtefact.load(config.candidate), {"made": f"given: {config.candidate}"}
    elif config.remove_model is not None:
        artefact = remove_model(PolicyArtefact.load(current), config.remove_model)
        made = {"made": f"removed {config.remove_model}"}
    elif config.add_model is not None:
        artefact, made = _with_model(config.add_model, sessions, current)
    else:
        artefact, made = _trained(config, sessions, current, out)
    artefact.save(out)
    return made | {"policy_version": artefact.version, "models": list(artefact.catalog.names)}


def _with_model(name: str, sessions: Path, current: Path) -> tuple[PolicyArtefact, dict[str, Any]]:
    fit = read_sessions(sessions).of_part("fit")
    num = _num_judged(fit, name)
    spec = fit.catalog.models[fit.catalog.action(name)]
    artefact = add_model(PolicyArtefact.load(current), spec, fit if num else None)
    return artefact, {"made": f"added {name}", "num_observed_turns": num}


def _num_judged(sessions: Sessions, name: str) -> int:
    quality, _ = observed_outcomes(sessions)
    return int(np.isfinite(quality[:, sessions.catalog.action(name)]).sum())


def _trained(config: RetrainConfig, sessions: Path, current: Path, out: Path) -> tuple[PolicyArtefact, dict[str, Any]]:
    """The prices of a bankruptcy are the current policy's: they were chosen once, with outcomes that logs lack."""
    dataset, before = out.with_name(DATASET), PolicyArtefact.load(current)
    relabeled = stages.relabel(
        RelabelConfig(sessions=sessions, out=dataset, hbr=config.hbr, estimator=config.estimator, runner=config.runner)
    )
    num_context = read_header(dataset).layout.num_context
    cold = why_cold(before, num_context, config.cql) if config.warm_start else "as asked for"
    trained = stages.train(
        TrainConfig(dataset=dataset, out=out.with_name(TRAINED), cql=config.cql, init_from=None if cold else current)
    )
    artefact = replace(PolicyArtefact.load(out.with_name(TRAINED)), risk=before.risk)
    start = f"random weights ({cold})" if cold else f"the network of {before.version}"
    return artefact, {
        "made": "trained",
        "start": start,
        "num_steps": trained["num_steps"],
        "num_transitions": relabeled["num_transitions"],
        "data_fingerprint": relabeled["data_fingerprint"],
    }


def why_cold(before: PolicyArtefact, num_context: int, cql: CqlConfig) -> str:
    """Why training cannot start from this network; empty where it can."""
    network = before.network
    if network.num_context != num_context:
        return f"its states have {network.num_context} entries of context, those of these logs {num_context}"
    if cql.ensemble_size > 1:
        return "an ensemble's networks must differ"
    for head, wanted in zip(HEADS, (cql.hidden, cql.risk_hidden), strict=True):
        widths = tuple(bias.shape[0] for _, bias in getattr(network, head).layers[:-1])
        if widths != wanted:
            return f"its {head} head has hidden layers {widths}, asked for are {wanted}"
    return ""
