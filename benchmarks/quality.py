"""Quality, cost and bankruptcies on the test part, against every baseline: the figures of docs/experiments.md.

    python benchmarks/quality.py [--out runs/quality] [--num-seeds 5]

Three pools of models on composed sessions, and MINT (seqroute_ray/mint.py). Policies of several seeds are relabeled
and trained on the fit part, every policy's knob is chosen on the tune part, and all are reported on the test part.
Writes OUT/POOL/seed-N/report.json and .html; ends with one JSON line. Figures are means over seeds; an interval's ends
are the means of the seeds' own.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.sample import DEFAULT_POOL, FINDINGS_POOL, Part
from seqroute_ray.evaluation.evaluate import Kept
from seqroute_ray.mint import MintConfig, run_mint
from seqroute_ray.quickstart import Folders, QuickstartConfig, judge, learn, sample_and_import
from seqroute_ray.ray_session import ray_session

POOLS = {
    "pair": ("llama-3.1-8b-instruct", "claude-3-5-sonnet-20241022"),
    "trio": DEFAULT_POOL,
    "five": FINDINGS_POOL,
}
MINT = "mint"
DIGITS = 4

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("runs/quality")
    num_seeds: int = 5
    num_steps: int = 4_000
    environments: tuple[str, ...] = ("five", "trio", MINT, "pair")  # the longest first
    num_processes: int = 2


def run_pool(settings: Settings, pool: str) -> list[Report]:
    """One report a seed, on the same sessions."""
    shared = Folders(settings.out / pool)
    config = QuickstartConfig(out=shared.out, models=POOLS[pool], num_steps=settings.num_steps)
    parts: tuple[tuple[Part, int], ...] = (("fit", 10_000), ("tune", 2_000), ("test", 2_000))
    for seed, (part, num_sessions) in enumerate(parts):
        sample_and_import(config, shared, part, num_sessions, seed)
    reports, kept = [], Kept()  # baselines are the same for every seed: one estimator, fitted on the same sessions
    for seed in range(settings.num_seeds):
        cell = Folders(shared.out / f"seed-{seed}", parent=shared)
        seeded = replace(config, seed=seed, out=cell.out)
        learn(seeded, cell)
        penalties = PolicyArtefact.load(cell.policy).risk.penalties
        # The same draws of questions for every seed: their intervals can be averaged.
        reports.append({**judge(replace(seeded, seed=0), cell, kept)[1], "risk_prices": penalties})
    return reports


def averaged(reports: Sequence[Report], table: str, keys: Sequence[str], fields: Sequence[str]) -> list[Report]:
    """Rows of a table, one for each value of its keys, with the means over seeds of some fields."""
    rows: dict[tuple[Any, ...], list[Report]] = {}
    for report in reports:
        for row in report[table]:
            rows.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {**dict(zip(keys, key, strict=True)), **{field: _mean([row[field] for row in group]) for field in fields}}
        for key, group in rows.items()
    ]


def _mean(values: Sequence[Any]) -> Any:
    """Mean over seeds, of numbers or of intervals; None where a seed has none."""
    if any(value is None for value in values):
        return None
    return np.round(np.mean(values, axis=0), DIGITS).tolist()


def served(report: Report, field: str) -> list[Any]:
    """A figure of CQL as the artefact serves (lambda 0), by budget."""
    return [row[field] for row in report["rows"] if row["policy"] == "cql" and not row["lambda_per_usd"]]


def lambda_steps(report: Report) -> tuple[int, int]:
    """Steps from one lambda of CQL to the next at every budget: how many, and how many of them raise the cost."""
    rows = [row for row in report["rows"] if row["policy"] == "cql"]
    by_lambda = sorted({row["lambda_per_usd"] for row in rows})
    cost = np.array([[row["cost_usd_per_turn"] for row in rows if row["lambda_per_usd"] == x] for x in by_lambda])
    return cost[1:].size, int((np.diff(cost, axis=0) > 0).sum())


def summary(reports: Sequence[Report], environment: str) -> Report:
    """What the last line says of one pool: rows by baseline and budget, and CQL as served by seed."""
    aiq = [f"{name}{kind}" for name in ("aiq", "aiq_log") for kind in ("", "_cql_less_this", "_difference_ci")]
    difference = ["difference", "low", "high", "cql_quality", "cql_bankruptcy_rate", "baseline_bankruptcy_rate"]
    tables = {
        "aiq": averaged(reports, "aiq", ["policy"], aiq),
        "comparisons": averaged(reports, "comparisons", ["regime", "baseline", "budget"], difference),
        "cost_saving_at_equal_quality": averaged(reports, "cost_at_equal_quality", ["baseline", "budget"], ["saving"]),
    }
    by_seed = {
        name: [np.round(served(report, name), 8).tolist() for report in reports]
        for name in ("quality", "cost_usd_per_turn", "bankruptcy_rate", "bankruptcy_ci")
    }
    by_seed["lambda_steps_and_rises"] = [lambda_steps(report) for report in reports]
    by_seed["risk_prices"] = [report["risk_prices"] for report in reports]
    by_seed["against_best_simple"] = [
        [verdict for verdict in report["verdicts"] if not verdict["lambda_per_usd"]] for report in reports
    ]
    return {
        **{name: [{"environment": environment, **row} for row in rows] for name, rows in tables.items()},
        **{name: {environment: values} for name, values in by_seed.items()},
    }


def merged(parts: Sequence[Report]) -> Report:
    """One report of all pools: rows are joined, figures by pool are united."""
    result: Report = {name: type(value)() for part in parts for name, value in part.items()}
    for part in parts:
        for name, value in part.items():
            result[name] = result[name] | value if isinstance(value, dict) else result[name] + value
    return result


def environment(settings: Settings, name: str) -> Report:
    """One pool, or MINT; in a process of its own."""
    with ray_session():
        if name == MINT:
            return mint_summary(run_mint(MintConfig(num_seeds=settings.num_seeds)))
        return summary(run_pool(settings, name), name)


def mint_summary(report: Report) -> Report:
    """MINT's part of the last line."""
    keys = ("environment", "regime")
    labels = dict(zip(keys, (MINT, "most success"), strict=True))
    return {"comparisons": [{**labels, **row} for row in report["comparisons"]], "mint": report["rows"]}


def main(settings: Settings) -> None:
    if settings.out.exists():
        raise SystemExit(f"{settings.out} exists; delete it or choose another --out")
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes: they share the cores
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.num_processes, mp_context=spawn) as workers:
        parts = list(workers.map(environment, repeat(settings), settings.environments))
    print(json.dumps({**merged(parts), "wall_s": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
