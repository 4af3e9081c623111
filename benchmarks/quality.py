"""Quality, cost and bankruptcies of both pools on the test part: the figures of README and docs/experiments.md.

    python benchmarks/quality.py [--out runs/quality] [--num-seeds 3]

Policies of several seeds are trained on the fit part, calibrated on the tune part, and reported on the test part.
Writes OUT/POOL/seed-N/report.json and .html; ends with one JSON line.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.sample import DEFAULT_POOL, FINDINGS_POOL, Part
from seqroute_ray.quickstart import Folders, QuickstartConfig, judge, learn, sample_and_import
from seqroute_ray.ray_session import ray_session

POOLS = {"trio": DEFAULT_POOL, "five": FINDINGS_POOL}
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
    return max(float(cql["bankruptcy_rate"]) - MAX_BANKRUPT for cql, alone in pairs if alone["bankruptcy_rate"] < SAFE)


def run_pool(settings: Settings, pool: str) -> Report:
    shared = Folders(settings.out / pool)
    config = QuickstartConfig(out=shared.out, models=POOLS[pool], num_steps=settings.num_steps)
    parts: tuple[tuple[Part, int], ...] = (("fit", 10_000), ("tune", 2_000), ("test", 2_000))
    for seed, (part, num_sessions) in enumerate(parts):
        sample_and_import(config, shared, part, num_sessions, seed)
    reports, prices = [], []
    for seed in range(settings.num_seeds):
        cell = Folders(shared.out / f"seed-{seed}", parent=shared)
        seeded = replace(config, seed=seed, out=cell.out)
        learn(seeded, cell)
        prices.append(PolicyArtefact.load(cell.policy).risk.penalties)
        reports.append(judge(seeded, cell)[1])
    return {"risk_prices": prices, **summary(reports)}


def summary(reports: list[Report]) -> Report:
    """Per budget: CQL at lambda 0 by seed, and the paired difference to the best simple policy."""
    verdicts = [[v for v in report["verdicts"] if v["lambda_per_usd"] == 0] for report in reports]
    cql = [rows_of(report, "cql") for report in reports]
    return {
        "budgets": reports[0]["header"]["budgets"],
        "quality": np.round([[row["quality"] for row in rows] for rows in cql], 4).tolist(),
        "cost_usd_per_turn": np.round([[row["cost_usd_per_turn"] for row in rows] for rows in cql], 7).tolist(),
        "bankruptcy_rate": np.round([[row["bankruptcy_rate"] for row in rows] for rows in cql], 4).tolist(),
        "bankruptcy_ci": np.round([[row["bankruptcy_ci"] for row in rows] for rows in cql], 4).tolist(),
        "best_simple": [v["best_simple"] for v in verdicts[0]],
        "difference": np.round([[v["quality_difference"] for v in row] for row in verdicts], 4).tolist(),
        "difference_ci": np.round([[v["difference_ci"] for v in row] for row in verdicts], 4).tolist(),
        "worst_excess": [round(worst_excess(report), 4) for report in reports],
    }


def main(settings: Settings) -> None:
    if settings.out.exists():
        raise SystemExit(f"{settings.out} exists; delete it or choose another --out")
    with ray_session():
        result = {pool: run_pool(settings, pool) for pool in settings.pools}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings))
