"""MINT under strict budgets: the learned policy against cascades and rules, by cross-validation over tasks.

    python benchmarks/mint.py [--models MODEL ...] [--all-models] [--num-seeds 5]

Prints a table on stderr; ends with one JSON line.
"""

import json
import time
from dataclasses import replace
from typing import Annotated

import tyro
from rich.table import Table

from seqroute_ray.data.mint import load_mint
from seqroute_ray.mint import MintConfig, Report, run_mint
from seqroute_ray.progress import bar, console
from seqroute_ray.ray_session import ray_session


def table(report: Report) -> Table:
    """Success and cost by policy and budget."""
    budgets = list(dict.fromkeys(row["budget_usd"] for row in report["rows"]))
    shown = Table(title="Solved tasks / $ a task, by strict budget a task")
    shown.add_column("policy")
    for budget in budgets:
        shown.add_column(f"${budget:g}", justify="right")
    cells: dict[str, list[str]] = {}
    for row in report["rows"]:
        cells.setdefault(row["policy"], []).append(f"{100 * row['success']:.1f} % / {row['cost_usd']:.5f}")
    for policy, values in cells.items():
        shown.add_row(policy, *values, style="bold" if policy == "cql" else "")
    return shown


def main(
    config: MintConfig, all_models: Annotated[bool, tyro.conf.arg(help="the pool of all 22 models")] = False
) -> None:
    started = time.monotonic()
    if all_models:
        config = replace(config, models=load_mint().catalog.names)
    with ray_session(), bar("mint, networks") as update:
        report = run_mint(config, lambda done, total: update(done, total, ""))
    console.print(table(report))
    print(json.dumps({**report, "wall_s": round(time.monotonic() - started)}))


if __name__ == "__main__":
    tyro.cli(main)
