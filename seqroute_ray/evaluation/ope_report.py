"""Off-policy evaluation of a policy artefact on a session file: what `seqroute ope` prints."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.config import OpeConfig
from seqroute_ray.evaluation.ope import OffPolicy
from seqroute_ray.evaluation.ope_intervals import spread
from seqroute_ray.evaluation.ope_log import Exploring, check_propensities, follow, target_probabilities
from seqroute_ray.evaluation.replay import ReplayData, check_pool

Report = dict[str, Any]


def evaluate_ope(config: OpeConfig) -> Report:
    """The report, written to `config.out` too where that is given. Raises DataError, ArtefactError."""
    artefact = PolicyArtefact.load(config.policy)
    sessions = read_sessions(config.sessions)
    _check(sessions, artefact, config)
    budget_usd = config.budget_usd or (config.budget or 0.0) * artefact.layout.reference_cost_usd
    data = ReplayData.of_log(sessions, artefact.estimator, artefact.layout)
    paths = follow(sessions, np.full(sessions.num_sessions, to_nusd(budget_usd)))
    policy = Exploring(QPolicy(artefact.network, artefact.risk, config.lambda_per_usd), config.epsilon)
    log = OffPolicy.of(
        paths,
        target_probabilities(policy, data, paths),
        artefact.layout,
        data.features,
        per=config.per,
        follows_forced=config.follows_forced,
        min_ess=config.min_ess,
    )
    report = {
        "policy_version": artefact.version,
        "budget_usd": budget_usd,
        "lambda_per_usd": config.lambda_per_usd,
        "epsilon": config.epsilon,
        "per": config.per,
        "log": _of_log(log),
        "answers": [asdict(answer) for answer in log.answers()],
    }
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _check(sessions: Sessions, artefact: PolicyArtefact, config: OpeConfig) -> None:
    check_propensities(sessions)
    check_pool(sessions, artefact, config.sessions)
    if sessions.embedder != artefact.embedder:
        raise DataError(
            f"{config.sessions}: vectors of embedder {sessions.embedder!r}, the policy reads those of "
            f"{artefact.embedder!r}; import the logs with --embedder {artefact.embedder}"
        )


def _of_log(log: OffPolicy) -> Report:
    """What the log holds, and what its own policy earned under the same budget."""
    paths, sessions = log.paths, log.paths.sessions
    earned, names = log.logged, sessions.catalog.names
    error = spread(earned.influence(), sessions)
    turns = np.bincount(sessions.action, minlength=len(names))
    judged = np.bincount(sessions.action, weights=paths.judged, minlength=len(names))
    return {
        "num_sessions": sessions.num_sessions,
        "num_turns": len(sessions.action),
        "num_groups": len(np.unique(sessions.group_id)),
        "turns_by_model": dict(zip(names, turns.tolist(), strict=True)),
        "judged_share_by_model": dict(zip(names, (judged / np.maximum(turns, 1)).tolist(), strict=True)),
        "mean_propensity": float(sessions.propensity.mean()),
        "dearest_session_usd": float(to_usd(np.add.reduceat(sessions.cost_nusd, sessions.offsets[:-1]).max())),
        "bankruptcy_rate": float(paths.bankrupt.mean()),
        "quality": earned.value(),
        "quality_interval": error.interval(earned.value()),
    }
