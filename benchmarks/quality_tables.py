"""The tables of docs/experiments.md, of the reports that benchmarks/quality.py left.

    python benchmarks/quality_tables.py [--out runs/quality] [--into docs/experiments.md]

Prints them as Markdown; with --into, replaces those of the file that stand under the same headings. Ends with one JSON
line.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from quality import POOLS

Report = dict[str, Any]
SIMPLE_ORDER = ("budget heuristic", "static mixture", "first large", "threshold router", "boundary-guided")
ROUTERS = (*SIMPLE_ORDER, "myopic", "pacing", "dynamic program on types", "dynamic program")
BEST_SINGLE = "best single model"
AIQ_ORDER = (BEST_SINGLE, "behaviour cloning", "random", *SIMPLE_ORDER, "greedy on estimates", *ROUTERS[5:])
REGIMES = {"Budget by budget": "most quality", "Held to 1 % bankruptcies": "at most 1 % bankrupt"}
WIDE_BUDGETS = (0.35, 0.6, 1.0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: Path = Path("runs/quality")
    into: Path | None = None


def reports_of(out: Path, pool: str) -> list[Report]:
    """One a seed, of two seeds at least."""
    found = [json.loads(path.read_text()) for path in sorted((out / pool).glob("seed-*/report.json"))]
    if len(found) < 2:
        raise SystemExit(f"{out / pool}: reports of {len(found)} seeds; run benchmarks/quality.py with two or more")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines)
        .replace("| --- ", "|---")
        .replace("---| ---", "---|---")
    )


def served(report: Report) -> list[Report]:
    """CQL at lambda 0, by budget."""
    return [row for row in report["rows"] if row["policy"] == "cql" and not row["lambda_per_usd"]]


def as_served(reports: Sequence[Report]) -> str:
    rows = []
    for at, budget in enumerate(reports[0]["header"]["budgets"]):
        cells = [served(report)[at] for report in reports]
        verdicts = [[v for v in report["verdicts"] if not v["lambda_per_usd"]][at] for report in reports]
        worst, best = (pick(verdicts, key=lambda v: v["quality_difference"]) for pick in (min, max))
        quality = [cell["quality"] for cell in cells]
        rows.append(
            [
                f"{budget:g}x",
                f"{np.mean(quality):.3f}",
                f"{np.std(quality, ddof=1):.4f}",
                f"{1e3 * np.mean([cell['cost_usd_per_turn'] for cell in cells]):.2f}",
                ", ".join(f"{100 * cell['bankruptcy_rate']:.1f}" for cell in cells) + " %",
                " or ".join(sorted({v["best_simple"].removeprefix("only ") for v in verdicts})),
                "; ".join(
                    f"{v['quality_difference']:+.3f} {interval(v['difference_ci'], '+.3f')}" for v in (worst, best)
                ),
            ]
        )
    head = ("budget", "quality", "sd over seeds", "cost", "bankrupt, by seed", "best simple policy")
    return table((*head, "difference to it, worst and best seed"), rows)


def interval(ends: Sequence[float], form: str) -> str:
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def mean_of(rows: Sequence[Report], *names: str) -> list[Any]:
    """Means over seeds."""
    return [np.mean([row[name] for row in rows], axis=0) for name in names]


def aiq_row(report: Report, policy: str, kind: str) -> Report:
    """Of a policy; BEST_SINGLE is the model with the largest AIQ of this kind."""
    rows: list[Report] = report["aiq"]
    if policy == BEST_SINGLE:
        return max((row for row in rows if row["policy"].startswith("only ")), key=lambda row: float(row[kind]))
    return next(row for row in rows if row["policy"] == policy)


def frontier(pools: dict[str, list[Report]]) -> str:
    def cells(policy: str) -> Iterator[str]:
        for kind in ("aiq", "aiq_log"):
            for reports in pools.values():
                rows = [aiq_row(report, policy, kind) for report in reports]
                own, less, ends = mean_of(rows, kind, f"{kind}_cql_less_this", f"{kind}_difference_ci")
                yield f"*{own:.4f}*" if policy == "cql" else f"{less:+.4f} {interval(ends, '+.4f')}"

    head = ["baseline", *pools, *(f"{pool}, log cost" for pool in pools)]
    return table(head, [["*cql itself*", *cells("cql")], *([name, *cells(name)] for name in AIQ_ORDER)])


def by_budget(reports: Sequence[Report], regime: str) -> str:
    budgets = reports[0]["header"]["budgets"]

    def cells(baseline: str, itself: bool = False) -> Iterator[str]:
        for budget in budgets:
            rows = [
                row
                for report in reports
                for row in report["comparisons"]
                if (row["regime"], row["baseline"], row["budget"]) == (regime, baseline, budget)
            ]
            names = ("difference", "low", "high", "cql_quality", "cql_bankruptcy_rate", "baseline_bankruptcy_rate")
            difference, low, high, quality, ours, theirs = mean_of(rows, *names)
            if itself:
                yield f"*{quality:.3f}, {100 * ours:.1f} %*"
            else:
                yield f"{100 * difference:+.1f} {interval((100 * low, 100 * high), '+.1f')}; {100 * theirs:.1f} %"

    head = ["baseline", *(f"{budget:g}x" for budget in budgets)]
    itself = ["*cql itself: quality, bankrupt*", *cells(ROUTERS[0], itself=True)]
    return table(head, [itself, *([name, *cells(name)] for name in ROUTERS)])


def cost_at_equal_quality(pools: dict[str, list[Report]]) -> str:
    def cells(baseline: str) -> Iterator[str]:
        for reports in pools.values():
            for budget in WIDE_BUDGETS:
                found = [
                    row["saving"]
                    for report in reports
                    for row in report["cost_at_equal_quality"]
                    if (row["baseline"], row["budget"]) == (baseline, budget) and row["saving"] is not None
                ]
                few = f" ({len(found)} of {len(reports)} seeds)" if len(found) < len(reports) else ""
                yield f"{-100 * np.mean(found):+.0f} %{few}" if found else "not reached"

    head = ["baseline"]
    for pool in pools:
        head += [f"{pool} .35x", ".6x", "1x"]
    return table(head, [[name, *cells(name)] for name in ROUTERS])


def behaviour(pools: dict[str, list[Report]]) -> str:
    rows = []
    for pool, reports in pools.items():
        for at, budget in enumerate(reports[0]["header"]["budgets"]):
            seen = [[row for row in report["behaviour"] if row["policy"] == "cql"][at] for report in reports]
            way, switches, slope, hard, easy = mean_of(
                seen,
                "oracle_gap_closed",
                "switches_per_session",
                "strong_slope",
                "strong_on_late_hard",
                "strong_on_late_easy",
            )
            kinds = [
                mean_of([row[kind] for row in seen], "quality", "bankruptcy_rate") for kind in ("focused", "mixed")
            ]
            rows.append(
                [
                    f"{pool}, {budget:g}x",
                    f"{100 * way:.0f} %",
                    f"{switches:.1f}",
                    f"{slope:+.2f}",
                    f"{100 * hard:.0f} %",
                    f"{100 * easy:.0f} %",
                    ", ".join(f"{quality:.3f}" for quality, _ in kinds),
                    ", ".join(f"{100 * rate:.1f}" for _, rate in kinds) + " %",
                ]
            )
    head = (
        "pool, budget",
        "way to the oracle",
        "switches a session",
        "slope of P(strong)",
        "strong on late hard turns",
    )
    return table((*head, "late easy", "quality focused, mixed", "bankrupt focused, mixed"), rows)


def sections(pools: dict[str, list[Report]]) -> dict[str, list[str]]:
    """Tables by the beginning of the heading that they stand under."""
    return {
        "As served": [as_served(reports) for reports in pools.values()],
        "The whole frontier": [frontier(pools)],
        **{name: [by_budget(reports, regime) for reports in pools.values()] for name, regime in REGIMES.items()},
        "Cost at equal quality": [cost_at_equal_quality(pools)],
        "How it behaves": [behaviour(pools)],
    }


def replaced(page: str, heading: str, tables: Sequence[str]) -> str:
    """The page with the tables under a heading in the place of those that were there."""
    start = page.index(f"\n### {heading}")
    end = page.find("\n#", start + 5)
    before, section, after = page[:start], page[start:end], page[end:]
    found = list(re.finditer(r"(?:^\|.*\n)+", section, re.MULTILINE))
    if len(found) != len(tables):
        raise SystemExit(f"{len(found)} tables under {heading!r}, {len(tables)} wanted")
    for match, new in reversed(list(zip(found, tables, strict=True))):
        section = section[: match.start()] + new + "\n" + section[match.end() :]
    return before + section + after


def main(settings: Settings) -> None:
    pools = {pool: reports_of(settings.out, pool) for pool in POOLS}
    made = sections(pools)
    if settings.into is not None:
        page = settings.into.read_text()
        for heading, tables in made.items():
            page = replaced(page, heading, tables)
        settings.into.write_text(page)
    else:
        for heading, tables in made.items():
            print(f"### {heading}\n", *tables, sep="\n", file=sys.stderr)
    cells = [verdict for reports in pools.values() for report in reports for verdict in report["verdicts"]]
    at_zero = [verdict for verdict in cells if not verdict["lambda_per_usd"]]
    below = [verdict for verdict in at_zero if verdict["difference_ci"][1] < 0]
    print(json.dumps({"num_cells": len(at_zero), "num_below_best_simple": len(below), "below": below}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
