"""Evaluate a policy artefact: replay it and the baselines on held-out sessions, write report.json and report.html."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions, observed_outcomes, read_sessions
from seqroute_ray.evaluation.baselines import BudgetHeuristic, FixedModel, QPolicy, RandomModel, SourceTable
from seqroute_ray.evaluation.config import LAMBDA_GRID, EvaluateConfig
from seqroute_ray.evaluation.metrics import (
    Measured,
    Replicates,
    interval,
    measure,
    question_replicates,
    share_by_remaining,
)
from seqroute_ray.evaluation.oracle import plan_oracle, replay_oracle
from seqroute_ray.evaluation.replay import Policy, ReplayData, ReplayResult, replay
from seqroute_ray.evaluation.report import write_html

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (replays done, replays in all)
SHARE_EDGES = np.geomspace(0.01, 1.0, 13)  # of remaining budget, as multiples of the reference cost
CQL, CLONING, ORACLE = "cql", "behaviour cloning", "oracle"


@dataclass(frozen=True)
class Contestant:
    """A policy, how to replay it, and the lambda it was asked for."""

    name: str
    replay: Callable[[IntArray], ReplayResult]  # budget_nusd [S] -> result
    lambda_per_usd: float | None = None


def evaluate(config: EvaluateConfig, progress: Progress = lambda _done, _total: None) -> dict[str, Any]:
    """Replay, measure, write both reports; returns the content of report.json. Raises DataError, ArtefactError."""
    artefact = PolicyArtefact.load(config.policy)
    sessions = read_sessions(config.sessions).of_part(config.part)
    check_pool(sessions, artefact, config.sessions)
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    replicates = question_replicates(sessions, config.num_replicates, config.seed)
    people = contestants(config, artefact, data)
    budgets_usd = [multiple * artefact.layout.reference_cost_usd for multiple in config.budgets]
    measured, shares = _replay_all(people, budgets_usd, data, replicates, progress)
    report = {
        "rows": _rows(people, budgets_usd, measured, sessions),
        "verdicts": _verdicts(people, budgets_usd, measured),
        "shares_by_remaining": shares,
        "header": _header(config, artefact, sessions),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_html(report, config.out / "report.html")
    return report


def check_pool(sessions: Sessions, artefact: PolicyArtefact, path: Path) -> None:
    """Raises DataError when the sessions are of another pool, order or prices than the policy."""
    if sessions.catalog.fingerprint != artefact.catalog.fingerprint:
        raise DataError(
            f"{path}: pool {', '.join(sessions.catalog.names)} or its prices differ from the policy's "
            f"({', '.join(artefact.catalog.names)})"
        )


def contestants(config: EvaluateConfig, artefact: PolicyArtefact, data: ReplayData) -> list[Contestant]:
    """Every policy of the report; baselines first, the oracle last."""
    policies: list[Policy] = [FixedModel(action, f"only {name}") for action, name in enumerate(artefact.catalog.names)]
    policies.append(RandomModel(config.seed))
    policies.append(BudgetHeuristic(np.array(artefact.configs["mean_cost_usd"])))
    if config.fit_sessions is not None:
        fit = read_sessions(config.fit_sessions).of_part("fit")
        check_pool(fit, artefact, config.fit_sessions)
        policies.append(SourceTable.fit(fit, *observed_outcomes(fit)))
    if config.cloning is not None:
        cloning = PolicyArtefact.load(config.cloning, expect=artefact.catalog)
        if cloning.data_fingerprint != artefact.data_fingerprint:
            raise DataError(f"{config.cloning}: learned from another dataset than {config.policy}; train both on one")
        policies.append(QPolicy(cloning.network, cloning.risk.penalties[0], name=CLONING))
    people = [Contestant(policy.name, _replayer(policy, data)) for policy in policies]
    lambdas = config.lambdas_per_usd or tuple(x / artefact.layout.reference_cost_usd for x in LAMBDA_GRID)
    for value in lambdas:
        people.append(Contestant(CQL, cql_replayer(artefact, data, value), value))
    plan = plan_oracle(data.sessions)
    people.append(Contestant(ORACLE, lambda budget_nusd: replay_oracle(plan, data.sessions, budget_nusd)))
    return people


def cql_replayer(
    artefact: PolicyArtefact, data: ReplayData, lambda_per_usd: float
) -> Callable[[IntArray], ReplayResult]:
    """Replays the artefact as the server would run it: the budget sets the price of a bankruptcy."""

    def run(budget_nusd: IntArray) -> ReplayResult:
        penalty = artefact.penalty(float(to_usd(budget_nusd).mean()))
        return replay(QPolicy(artefact.network, penalty, lambda_per_usd), data, budget_nusd)

    return run


def _replayer(policy: Policy, data: ReplayData) -> Callable[[IntArray], ReplayResult]:
    return lambda budget_nusd: replay(policy, data, budget_nusd)


def _replay_all(
    people: Sequence[Contestant],
    budgets_usd: Sequence[float],
    data: ReplayData,
    replicates: Replicates,
    progress: Progress,
) -> tuple[list[list[Measured]], dict[str, Any]]:
    """Figures by contestant and budget, and the share of models against remaining money of CQL at lambda 0."""
    reference_usd, num_models = data.layout.reference_cost_usd, data.layout.num_models
    measured: list[list[Measured]] = []
    turns_by_share = np.zeros((len(SHARE_EDGES) - 1, num_models))
    for person in people:
        row = []
        for budget_usd in budgets_usd:
            result = person.replay(np.full(data.sessions.num_sessions, to_nusd(budget_usd)))
            row.append(measure(result, data.sessions, replicates))
            if person.name == CQL and person.lambda_per_usd == 0:
                share, turns = share_by_remaining(result, num_models, reference_usd, SHARE_EDGES)
                turns_by_share += share * turns[:, None]
            progress(len(measured) * len(budgets_usd) + len(row), len(people) * len(budgets_usd))
        measured.append(row)
    totals = turns_by_share.sum(axis=1)
    return measured, {
        "edges": SHARE_EDGES.tolist(),
        "num_turns": totals.tolist(),
        "share": (turns_by_share / np.maximum(totals, 1)[:, None]).tolist(),
    }


def _rows(
    people: Sequence[Contestant], budgets_usd: Sequence[float], measured: list[list[Measured]], sessions: Sessions
) -> list[dict[str, Any]]:
    """One row a (policy, lambda, budget)."""
    rows = []
    for person, figures in zip(people, measured, strict=True):
        for budget_usd, figure in zip(budgets_usd, figures, strict=True):
            fields = {name: value for name, value in asdict(figure).items() if name != "quality_replicates"}
            fields["model_share"] = dict(zip(sessions.catalog.names, figure.model_share.tolist(), strict=True))
            rows.append(
                {"policy": person.name, "lambda_per_usd": person.lambda_per_usd, "budget_usd": budget_usd, **fields}
            )
    return rows


def _verdicts(
    people: Sequence[Contestant], budgets_usd: Sequence[float], measured: list[list[Measured]]
) -> list[dict[str, Any]]:
    """CQL at every (lambda, budget) against the best simple policy there: the paired difference of quality."""
    simple = [
        i for i, person in enumerate(people) if person.name.startswith("only ") or person.name in ("random", CLONING)
    ]
    verdicts = []
    for i, person in enumerate(people):
        if person.name != CQL:
            continue
        for b, budget_usd in enumerate(budgets_usd):
            best = max(simple, key=lambda j, b=b: measured[j][b].quality)  # type: ignore[misc]
            difference: FloatArray = measured[i][b].quality_replicates - measured[best][b].quality_replicates
            verdicts.append(
                {
                    "lambda_per_usd": person.lambda_per_usd,
                    "budget_usd": budget_usd,
                    "best_simple": people[best].name,
                    "quality_difference": measured[i][b].quality - measured[best][b].quality,
                    "difference_ci": interval(difference),
                }
            )
    return verdicts


def _header(config: EvaluateConfig, artefact: PolicyArtefact, sessions: Sessions) -> dict[str, Any]:
    return {
        "policy_version": artefact.version,
        "data_fingerprint": artefact.data_fingerprint,
        "models": list(artefact.catalog.names),
        "reference_cost_usd": artefact.layout.reference_cost_usd,
        "parts": sorted(set(sessions.part.tolist())),
        "num_sessions": sessions.num_sessions,
        "num_turns": len(sessions.action),
        "num_questions": len(np.unique(sessions.group_id)),
        "budgets": list(config.budgets),
        "seed": config.seed,
        "num_replicates": config.num_replicates,
    }
