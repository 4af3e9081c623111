"""Quality, cost and bankruptcies of both pools on the test part: the figures of README and docs/experiments.md.

    python benchmarks/quality.py [--out runs/quality] [--num-seeds 3]

For each pool the bankruptcy penalty is chosen on the tune part (see `choose`), then policies of several seeds are
trained and reported on the test part once. Writes OUT/POOL/seed-N/report.json and .html; ends with one JSON line.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seqroute_ray import stages
from seqroute_ray.data.sample import DEFAULT_POOL, FINDINGS_POOL
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.progress import console
from seqroute_ray.quickstart import Folders, QuickstartConfig, judge, learn, sample_and_import
from seqroute_ray.ray_session import ray_session

POOLS = {"trio": DEFAULT_POOL, "five": FINDINGS_POOL}
PENALTIES = (1.0, 5.0, 10.0, 20.0)  # in turns of full quality
MAX_BANKRUPT = 0.03  # wanted wherever the cheapest model alone goes bankrupt in under SAFE of sessions
SAFE = 0.005

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("runs/quality")
    num_seeds: int = 3
    num_steps: int = 6_000
    pools: tuple[str, ...] = ("trio", "five")


def rows_of(report: Report, policy: str) -> list[Report]:
    return [row for row in report["rows"] if row["policy"] == policy and not row["lambda_per_usd"]]


def worst_excess(report: Report) -> float:
    """How far CQL's bankruptcy rate exceeds MAX_BANKRUPT at worst, where the cheapest model is safe."""
    cheapest = min(
        (rows_of(report, f"only {name}") for name in report["header"]["models"]),
        key=lambda rows: float(rows[-1]["cost_usd_per_turn"]),
    )
    pairs = zip(rows_of(report, "cql"), cheapest, strict=True)
    return max(cql["bankruptcy_rate"] - MAX_BANKRUPT for cql, alone in pairs if alone["bankruptcy_rate"] < SAFE)


def tune(folders: Folders, config: QuickstartConfig, penalty: float) -> Report:
    """The report of one candidate on the tune part."""
    learn(config, folders)
    out = folders.out / f"tune-{penalty:g}"
    stages.evaluate(EvaluateConfig(policy=folders.policy, sessions=folders.sessions("tune"), out=out))
    report: Report = json.loads((out / "report.json").read_text())
    return report


def choose(pool: str, reports: dict[float, Report]) -> float:
    """The smallest penalty whose bankruptcies stay below MAX_BANKRUPT on the tune part; else the one nearest to it.

    The trio's cheapest model goes bankrupt itself at the tight budgets: there the default penalty stays.
    """
    if pool == "trio":
        return PENALTIES[0]
    fitting = [penalty for penalty, report in reports.items() if worst_excess(report) < 0]
    return fitting[0] if fitting else min(reports, key=lambda penalty: worst_excess(reports[penalty]))


def run_pool(settings: Settings, pool: str) -> Report:
    folders = Folders(settings.out / pool)
    config = QuickstartConfig(out=folders.out, models=POOLS[pool], num_steps=settings.num_steps)
    for part, num_sessions, seed in (("fit", 10_000, 0), ("tune", 2_000, 1), ("test", 2_000, 2)):
        sample_and_import(config, folders, part, num_sessions, seed)  # type: ignore[arg-type]
    candidates = PENALTIES if pool != "trio" else PENALTIES[:1]
    tuned: dict[float, Report] = {}
    for penalty in candidates:
        cell = Folders(folders.out / f"penalty-{penalty:g}", parent=folders)
        tuned[penalty] = tune(cell, replace(config, bankruptcy_penalty=penalty), penalty)
        console.print(f"{pool} penalty={penalty:g} excess on tune={worst_excess(tuned[penalty]):+.4f}")
        if worst_excess(tuned[penalty]) < 0:
            break
    penalty = choose(pool, tuned)
    reports = []
    for seed in range(settings.num_seeds):
        cell = Folders(folders.out / f"seed-{seed}", parent=folders)
        seeded = replace(config, bankruptcy_penalty=penalty, seed=seed, out=cell.out)
        learn(seeded, cell)
        reports.append(judge(seeded, cell)[1])
    return {"bankruptcy_penalty": penalty, **summary(reports)}


def summary(reports: list[Report]) -> Report:
    """Per budget: CQL at lambda 0 by seed, and the paired difference to the best simple policy."""
    verdicts = [[v for v in report["verdicts"] if v["lambda_per_usd"] == 0] for report in reports]
    cql = [rows_of(report, "cql") for report in reports]
    return {
        "budgets": reports[0]["header"]["budgets"],
        "quality": np.round([[row["quality"] for row in rows] for rows in cql], 4).tolist(),
        "cost_usd_per_turn": np.round([[row["cost_usd_per_turn"] for row in rows] for rows in cql], 7).tolist(),
        "bankruptcy_rate": np.round([[row["bankruptcy_rate"] for row in rows] for rows in cql], 4).tolist(),
        "best_simple": [v["best_simple"] for v in verdicts[0]],
        "difference": np.round([[v["quality_difference"] for v in row] for row in verdicts], 4).tolist(),
        "difference_ci": np.round([[v["difference_ci"] for v in row] for row in verdicts], 4).tolist(),
        "worst_excess": [round(worst_excess(report), 4) for report in reports],
    }


def main(settings: Settings) -> None:
    with ray_session():
        result = {pool: run_pool(settings, pool) for pool in settings.pools}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings))
