"""Evaluate a policy artefact: replay it and the baselines on held-out sessions, write report.json and report.html."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.evaluation.behaviour import behaviour
from seqroute_ray.evaluation.compare import Arena, Choice, aiq_table, comparisons, cost_at_equal_quality, verdicts
from seqroute_ray.evaluation.config import LAMBDA_GRID, EvaluateConfig
from seqroute_ray.evaluation.families import (
    CQL,
    LEARNED,
    ORACLE,
    Family,
    fitted_families,
    learned_families,
    simple_families,
)
from seqroute_ray.evaluation.metrics import Measured, Replicates, measure, question_replicates, share_by_remaining
from seqroute_ray.evaluation.oracle import plan_oracle, replay_oracle
from seqroute_ray.evaluation.reliability import reliability
from seqroute_ray.evaluation.replay import ReplayData, check_pool, replay
from seqroute_ray.evaluation.report import write_html

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # (replays done, replays in all)
SHARE_EDGES = np.geomspace(0.01, 1.0, 13)  # of remaining budget, as multiples of the reference cost
Report = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """Replays by name of a baseline: the same for every policy with this estimator, judged on these sessions."""

    measured: dict[str, list[list[Measured]]] = field(default_factory=dict)  # by setting and budget
    on_tune: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)  # quality, bankruptcies: [S, B]


def evaluate(
    config: EvaluateConfig, progress: Progress = lambda _done, _total: None, kept: Kept | None = None
) -> Report:
    """What `report_of` says, written as both reports; returns it. Raises DataError, ArtefactError."""
    report = report_of(config, progress, kept)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_html(report, config.out / "report.html")
    return report


def report_of(
    config: EvaluateConfig, progress: Progress = lambda _done, _total: None, kept: Kept | None = None
) -> Report:
    """Replay and measure every policy; writes nothing.

    kept: of an evaluation that differed in the training seed alone; what is missing there is added. Raises DataError,
    ArtefactError.
    """
    kept = kept or Kept()
    artefact = PolicyArtefact.load(config.policy)
    data = _prepare(config.sessions, config.part, artefact)
    tune = None if config.tune_sessions is None else _prepare(config.tune_sessions, "tune", artefact)
    fit = None if config.fit_sessions is None else _fit_sessions(config.fit_sessions, artefact)
    families = all_families(config, artefact, fit)
    budgets_usd = [multiple * artefact.layout.reference_cost_usd for multiple in config.budgets]
    replicates = question_replicates(data.sessions, config.num_replicates, config.seed)
    steps = sum(len(family.settings) for family in families) * len(budgets_usd)
    count = _Counter(progress, steps if tune is None else 2 * steps)
    arena = Arena(
        families=families,
        budgets_usd=budgets_usd,
        measured=_replay_all(families, budgets_usd, data, replicates, count, kept),
        choice=_choose(families, budgets_usd, tune, count, kept),
        oracle=_oracle(data, budgets_usd, replicates),
        reference_cost_usd=artefact.layout.reference_cost_usd,
        cost_range_usd=_cost_range_usd(data.sessions),
    )
    return {
        "header": _header(config, artefact, data.sessions),
        "rows": _rows(arena, data.sessions),
        "verdicts": verdicts(arena),
        "comparisons": comparisons(arena),
        "aiq": aiq_table(arena),
        "cost_at_equal_quality": cost_at_equal_quality(arena),
        "shares_by_remaining": _shares(arena, data),
        "behaviour": _behaviour(arena, data),
        "reliability": reliability(data, fit),
    }


def all_families(config: EvaluateConfig, artefact: PolicyArtefact, fit: Sessions | None) -> list[Family]:
    """Every policy of the report: the learned ones first."""
    cloning = None if config.cloning is None else PolicyArtefact.load(config.cloning, expect=artefact.catalog)
    if cloning is not None and cloning.data_fingerprint != artefact.data_fingerprint:
        raise DataError(f"{config.cloning}: learned from another dataset than {config.policy}; train both on one")
    lambdas = config.lambdas_per_usd or tuple(x / artefact.layout.reference_cost_usd for x in LAMBDA_GRID)
    mean_cost_usd = np.array(artefact.configs["mean_cost_usd"])
    families = learned_families(artefact, cloning, lambdas)
    families += simple_families(artefact.catalog.names, mean_cost_usd, config.seed)
    return families if fit is None else families + fitted_families(fit, artefact)


def _prepare(path: Path, part: str, artefact: PolicyArtefact) -> ReplayData:
    sessions = read_sessions(path).of_part(part)
    check_pool(sessions, artefact, path)
    return ReplayData.prepare(sessions, artefact.estimator, artefact.layout)


def _fit_sessions(path: Path, artefact: PolicyArtefact) -> Sessions:
    sessions = read_sessions(path).of_part("fit")
    check_pool(sessions, artefact, path)
    return sessions


class _Counter:
    """Counts replays for the progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def step(self, replays: int = 1) -> None:
        self._done += replays
        self._progress(self._done, self._total)


def _replay_all(
    families: list[Family],
    budgets_usd: list[float],
    data: ReplayData,
    replicates: Replicates,
    count: _Counter,
    kept: Kept,
) -> list[list[list[Measured]]]:
    """Figures by family, setting and budget."""

    def figures(family: Family) -> list[list[Measured]]:
        if family.name in kept.measured:
            count.step(len(family.settings) * len(budgets_usd))
            return kept.measured[family.name]
        table = []
        for setting in family.settings:
            row = []
            for budget_usd in budgets_usd:
                result = replay(setting.policy, data, np.full(data.sessions.num_sessions, to_nusd(budget_usd)))
                row.append(measure(result, data.sessions, replicates))
                count.step()
            table.append(row)
        if family.name not in LEARNED:
            kept.measured[family.name] = table
        return table

    return [figures(family) for family in families]


def _choose(
    families: list[Family], budgets_usd: list[float], tune: ReplayData | None, count: _Counter, kept: Kept
) -> Choice | None:
    """What each setting does on the tune part; None without one."""
    if tune is None:
        return None
    quality, bankruptcy = [], []
    for family in families:
        shape = (len(family.settings), len(budgets_usd))
        if family.name in kept.on_tune:
            q, b = kept.on_tune[family.name]
            count.step(q.size)
        else:
            q, b = np.zeros(shape), np.zeros(shape)
            for s, setting in enumerate(family.settings):
                for i, budget_usd in enumerate(budgets_usd):
                    result = replay(setting.policy, tune, np.full(tune.sessions.num_sessions, to_nusd(budget_usd)))
                    q[s, i], b[s, i] = result.quality.mean(), result.bankrupt.mean()
                    count.step()
        if family.name not in LEARNED:
            kept.on_tune[family.name] = q, b
        quality.append(q)
        bankruptcy.append(b)
    return Choice(quality, bankruptcy)


def _oracle(data: ReplayData, budgets_usd: list[float], replicates: Replicates) -> list[Measured]:
    plan = plan_oracle(data.sessions)
    budgets = [np.full(data.sessions.num_sessions, to_nusd(budget_usd)) for budget_usd in budgets_usd]
    return [measure(replay_oracle(plan, data.sessions, budget), data.sessions, replicates) for budget in budgets]


def _cost_range_usd(sessions: Sessions) -> tuple[float, float]:
    """A turn of the cheapest and of the dearest single model, with no budget; above 0 for the logarithm."""
    mean_usd = to_usd(sessions.outcome_cost_nusd).mean(axis=0)
    return max(float(mean_usd.min()), 1e-9), float(mean_usd.max())


def _rows(arena: Arena, sessions: Sessions) -> list[Report]:
    """One row a (policy, budget), in order of budget, at the chosen setting; CQL with every lambda."""
    rows = []
    for f, family in enumerate(arena.families):
        every = [[s] * len(arena.budgets_usd) for s in range(len(family.settings))]
        chosen = [[arena.chosen(f, b) for b in range(len(arena.budgets_usd))]]
        for by_budget in every if family.name == CQL else chosen:
            for b, s in enumerate(by_budget):
                setting, budget_usd = family.settings[s], arena.budgets_usd[b]
                lambda_per_usd = getattr(setting.policy, "lambda_per_usd", None) if family.name == CQL else None
                figures = arena.measured[f][s][b]
                rows.append(_row(family.name, setting.knob, lambda_per_usd, budget_usd, figures, sessions))
    for budget_usd, figures in zip(arena.budgets_usd, arena.oracle, strict=True):
        rows.append(_row(ORACLE, "", None, budget_usd, figures, sessions))
    return rows


def _row(
    policy: str, knob: str, lambda_per_usd: float | None, budget_usd: float, figures: Measured, sessions: Sessions
) -> Report:
    return {
        "policy": policy,
        "knob": knob,
        "lambda_per_usd": lambda_per_usd,
        "budget_usd": budget_usd,
        "quality": figures.quality,
        "quality_ci": figures.quality_ci,
        "cost_usd_per_turn": figures.cost_usd_per_turn,
        "cost_ci": figures.cost_ci,
        "bankruptcy_rate": figures.bankruptcy_rate,
        "bankruptcy_ci": figures.bankruptcy_ci,
        "model_share": dict(zip(sessions.catalog.names, figures.model_share.tolist(), strict=True)),
    }


def _shares(arena: Arena, data: ReplayData) -> Report:
    """Share of models against remaining money of CQL at its first lambda, over all budgets."""
    num_models = data.layout.num_models
    turns_by_share: FloatArray = np.zeros((len(SHARE_EDGES) - 1, num_models))
    policy = arena.families[arena.index(CQL)].settings[0].policy
    for budget_usd in arena.budgets_usd:
        result = replay(policy, data, np.full(data.sessions.num_sessions, to_nusd(budget_usd)))
        share, turns = share_by_remaining(result, num_models, arena.reference_cost_usd, SHARE_EDGES)
        turns_by_share += share * turns[:, None]
    totals = turns_by_share.sum(axis=1)
    return {
        "edges": SHARE_EDGES.tolist(),
        "num_turns": totals.tolist(),
        "share": (turns_by_share / np.maximum(totals, 1)[:, None]).tolist(),
    }


def _behaviour(arena: Arena, data: ReplayData) -> list[Report]:
    """One row a (policy, budget) at the chosen setting; and how much of the way from the best single model to the
    oracle it goes."""
    sessions = data.sessions
    cost, quality = to_usd(sessions.outcome_cost_nusd).mean(axis=0), sessions.outcome_quality.mean(axis=0)
    strong, weak = int(quality.argmax()), int(cost.argmin())
    singles = [f for f, family in enumerate(arena.families) if family.name.startswith("only ")]
    rows = []
    for b, budget_usd in enumerate(arena.budgets_usd):
        best, possible = max(arena.at(f, b).quality for f in singles), arena.oracle[b].quality
        budget_nusd = np.full(sessions.num_sessions, to_nusd(budget_usd))
        for f, family in enumerate(arena.families):
            result = replay(family.settings[arena.chosen(f, b)].policy, data, budget_nusd)
            gap = (arena.at(f, b).quality - best) / max(possible - best, 1e-9)
            figures = behaviour(result, sessions, strong, weak, budget_usd)
            rows.append({"policy": family.name, "budget_usd": budget_usd, "oracle_gap_closed": gap, **figures})
    return rows


def _header(config: EvaluateConfig, artefact: PolicyArtefact, sessions: Sessions) -> Report:
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
        "knobs_chosen_on": "this part, in hindsight" if config.tune_sessions is None else "tune part",
        "seed": config.seed,
        "num_replicates": config.num_replicates,
    }
