"""A model that joins a trained policy: quality of routing after 0, 50 and 500 observed turns against full training.

    python benchmarks/add_model.py [--out runs/add-model]

For each held-out model of the five: a policy is trained without it, the model is added with that many observed turns
(questions of the fit part), and the test part is replayed; next to it the policy without the model, and one trained
on all five. Paired differences to full training resample questions. Ends with one JSON line.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.pool_change import add_model
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.sample import FINDINGS_POOL, SampleConfig, write_sample
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.metrics import interval, question_replicates
from seqroute_ray.evaluation.replay import ReplayData, ReplayResult, replay
from seqroute_ray.quickstart import Folders, QuickstartConfig, learn, sample_and_import
from seqroute_ray.ray_session import ray_session

TURNS_A_SESSION = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("runs/add-model")
    held_out: tuple[str, ...] = ("gpt-4o-mini-2024-07-18", "claude-3-5-sonnet-20241022")
    observed_turns: tuple[int, ...] = (0, 50, 500)
    budgets: tuple[float, ...] = (0.1, 0.2, 0.35, 0.6, 1.0)  # of the full pool's reference cost
    num_replicates: int = 500


def trained(settings: Settings, name: str, models: tuple[str, ...]) -> Folders:
    """A calibrated policy over a pool."""
    folders = Folders(settings.out / name)
    config = QuickstartConfig(out=folders.out, models=models)
    for seed, (part, num_sessions) in enumerate((("fit", 10_000), ("tune", 2_000), ("test", 2_000))):
        sample_and_import(config, folders, part, num_sessions, seed)  # type: ignore[arg-type]  # a literal, widened
    learn(config, folders)
    return folders


def observed(settings: Settings, models: tuple[str, ...], newcomer: str, num_turns: int) -> Sessions | None:
    """Logs in which only the newcomer answers."""
    if num_turns == 0:
        return None
    logs = settings.out / f"logs-{newcomer}-{num_turns}.parquet"
    sample = SampleConfig(
        num_sessions=num_turns // TURNS_A_SESSION,
        models=models,
        min_turns=TURNS_A_SESSION,
        max_turns=TURNS_A_SESSION,
        behaviour=newcomer,
        seed=9,
    )
    write_sample(sample, logs)
    sessions = logs.with_name(f"sessions-{newcomer}-{num_turns}.parquet")
    import_logs(ImportConfig(logs=(logs,), out=sessions, models=models, runner="local"))
    return read_sessions(sessions)


def routed(artefact: PolicyArtefact, sessions: Sessions, budget_usd: float) -> ReplayResult:
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    policy = QPolicy(artefact.network, artefact.risk)
    return replay(policy, data, np.full(sessions.num_sessions, to_nusd(budget_usd)))


def compare(settings: Settings, full: Folders, newcomer: str) -> list[dict[str, Any]]:
    others = tuple(name for name in FINDINGS_POOL if name != newcomer)
    without = trained(settings, f"without-{newcomer}", others)
    test = read_sessions(full.sessions("test"))
    all_five = PolicyArtefact.load(full.policy)
    four = PolicyArtefact.load(without.policy)
    spec = all_five.catalog.models[all_five.catalog.action(newcomer)]
    # The same test questions, with the pool in the order of the changed policy.
    order = (*others, newcomer)
    joined = pooled(test, order)
    contestants: dict[str, tuple[PolicyArtefact, Sessions]] = {"without it": (four, pooled(test, others))}
    for num_turns in settings.observed_turns:
        changed = add_model(four, spec, observed(settings, order, newcomer, num_turns))
        contestants[f"{num_turns} turns"] = (changed, joined)
    weights = question_replicates(test, settings.num_replicates, seed=0)
    rows = []
    for budget in settings.budgets:
        budget_usd = budget * all_five.layout.reference_cost_usd
        reference = routed(all_five, test, budget_usd)
        row: dict[str, Any] = {"newcomer": newcomer, "budget": budget, "full training": float(reference.quality.mean())}
        for name, (artefact, sessions) in contestants.items():
            result = routed(artefact, sessions, budget_usd)
            low, high = interval(weights.means((result.quality - reference.quality)[:, None])[:, 0])
            difference = float(result.quality.mean() - reference.quality.mean())
            row[name] = {
                "difference": round(difference, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "bankruptcy_rate": float(result.bankrupt.mean()),
            }
        rows.append(row)
    return rows


def pooled(sessions: Sessions, names: tuple[str, ...]) -> Sessions:
    """The same turns over a sub-pool, in another order; the logged action does not matter to a replay."""
    columns = [sessions.catalog.action(name) for name in names]
    return replace(
        sessions,
        catalog=sessions.catalog.select(names),
        outcome_quality=sessions.outcome_quality[:, columns],
        outcome_cost_nusd=sessions.outcome_cost_nusd[:, columns],
        action=np.zeros_like(sessions.action),
    )


def main(settings: Settings) -> None:
    if settings.out.exists():
        raise SystemExit(f"{settings.out} exists; delete it or choose another --out")
    with ray_session():
        full = trained(settings, "full", FINDINGS_POOL)
        rows = [row for newcomer in settings.held_out for row in compare(settings, full, newcomer)]
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
