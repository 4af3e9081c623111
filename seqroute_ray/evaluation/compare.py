"""Who wins where: paired differences, frontiers as one number, and what equal quality costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.evaluation.aiq import aiq, cost_at_quality
from seqroute_ray.evaluation.families import CLONING, CQL, CQL_ANY_RISK, Family
from seqroute_ray.evaluation.metrics import Measured, interval

Rows = list[dict[str, Any]]
SAFE_BANKRUPTCY = 0.01  # share of sessions
REGIMES = {"most quality": 1.0, "at most 1 % bankrupt": SAFE_BANKRUPTCY}  # share of bankrupt sessions, on the tune part


@dataclass(frozen=True)
class Choice:
    """What each setting did on the tune part, by family: [settings, budgets]."""

    quality: Sequence[FloatArray]
    bankruptcy: Sequence[FloatArray]


@dataclass(frozen=True)
class Arena:
    """All replays of a report."""

    families: list[Family]
    budgets_usd: list[float]
    measured: list[list[list[Measured]]]  # by family, setting, budget
    choice: Choice | None  # None: knobs are chosen in hindsight, on the evaluated part itself
    oracle: list[Measured]  # by budget
    reference_cost_usd: float
    cost_range_usd: tuple[float, float]  # a turn: cheapest and dearest single model, with no budget

    def index(self, name: str) -> int:
        return [family.name for family in self.families].index(name)

    def chosen(self, family: int, budget: int, max_bankruptcy: float = 1.0) -> int:
        """The setting of the most quality, on the tune part, among those that keep bankruptcies within a share.

        Where none keeps it, the one with the fewest. CQL as served stays at its first lambda, 0.
        """
        if self.families[family].name == CQL:
            return 0
        if self.choice is not None:
            quality = self.choice.quality[family][:, budget]
            bankruptcy = self.choice.bankruptcy[family][:, budget]
        else:
            quality = np.array([row[budget].quality for row in self.measured[family]])
            bankruptcy = np.array([row[budget].bankruptcy_rate for row in self.measured[family]])
        limit = max(max_bankruptcy, float(bankruptcy.min()))
        return int(np.argmax(np.where(bankruptcy <= limit, quality, -np.inf)))

    def at(self, family: int, budget: int, max_bankruptcy: float = 1.0) -> Measured:
        """Figures at the chosen setting."""
        return self.measured[family][self.chosen(family, budget, max_bankruptcy)][budget]

    @property
    def baselines(self) -> list[int]:
        return [f for f, family in enumerate(self.families) if family.name not in (CQL, CQL_ANY_RISK)]


def comparisons(arena: Arena) -> Rows:
    """CQL less every baseline: paired difference of quality at each budget, in two regimes.

    In both, every policy's knob is chosen for the most quality: freely, or held to SAFE_BANKRUPTCY.
    """
    cql, rows = arena.index(CQL_ANY_RISK), []
    for regime, limit in REGIMES.items():
        for f in arena.baselines:
            for b, budget_usd in enumerate(arena.budgets_usd):
                ours, theirs = arena.at(cql, b, limit), arena.at(f, b, limit)
                low, high = interval(ours.quality_replicates - theirs.quality_replicates)
                rows.append(
                    {
                        "regime": regime,
                        "baseline": arena.families[f].name,
                        "knob": arena.families[f].settings[arena.chosen(f, b, limit)].knob,
                        "budget": budget_usd / arena.reference_cost_usd,
                        "difference": ours.quality - theirs.quality,
                        "low": low,
                        "high": high,
                        "cql_knob": arena.families[cql].settings[arena.chosen(cql, b, limit)].knob,
                        "cql_quality": ours.quality,
                        "cql_bankruptcy_rate": ours.bankruptcy_rate,
                        "baseline_bankruptcy_rate": theirs.bankruptcy_rate,
                    }
                )
    return rows


def verdicts(arena: Arena) -> Rows:
    """CQL at every (lambda, budget) against the best of single models, random and cloning there."""
    simple = [
        f for f in arena.baselines if arena.families[f].name.startswith("only ") or _is_simple(arena.families[f].name)
    ]
    rows = []
    for setting, by_budget in zip(
        arena.families[arena.index(CQL)].settings, arena.measured[arena.index(CQL)], strict=True
    ):
        for b, ours in enumerate(by_budget):
            best = max(simple, key=lambda f, b=b: arena.at(f, b).quality)  # type: ignore[misc]
            theirs = arena.at(best, b)
            rows.append(
                {
                    "lambda_per_usd": getattr(setting.policy, "lambda_per_usd", None),
                    "budget_usd": arena.budgets_usd[b],
                    "best_simple": arena.families[best].name,
                    "quality_difference": ours.quality - theirs.quality,
                    "difference_ci": interval(ours.quality_replicates - theirs.quality_replicates),
                }
            )
    return rows


def _is_simple(name: str) -> bool:
    return name in ("random", CLONING)


def aiq_table(arena: Arena) -> Rows:
    """AIQ of every family over all its settings and budgets, and the paired difference of CQL's."""
    tables = [_aiq_values(arena.measured[f], *arena.cost_range_usd) for f in range(len(arena.families))]
    cql = tables[arena.index(CQL)]
    rows = []
    for family, table in zip(arena.families, tables, strict=True):
        row: dict[str, Any] = {"policy": family.name}
        for name, (value, replicates) in table.items():
            ours, our_replicates = cql[name]
            row[name] = value
            row[f"{name}_ci"] = interval(replicates)
            row[f"{name}_cql_less_this"] = ours - value
            row[f"{name}_difference_ci"] = interval(our_replicates - replicates)
        rows.append(row)
    return rows


def _aiq_values(table: list[list[Measured]], lowest: float, highest: float) -> dict[str, tuple[float, FloatArray]]:
    """AIQ over linear and over log cost: the value and its bootstrap values [R]."""
    points = [figures for row in table for figures in row]
    cost = np.array([p.cost_usd_per_turn for p in points])
    quality = np.array([p.quality for p in points])
    costs = np.stack([p.cost_replicates for p in points])
    qualities = np.stack([p.quality_replicates for p in points])
    values = {}
    for name, log_cost in (("aiq", False), ("aiq_log", True)):
        replicates = [aiq(c, q, lowest, highest, log_cost=log_cost) for c, q in zip(costs.T, qualities.T, strict=True)]
        values[name] = (aiq(cost, quality, lowest, highest, log_cost=log_cost), np.array(replicates))
    return values


def cost_at_equal_quality(arena: Arena) -> Rows:
    """Share of each baseline's cost that CQL saves at the baseline's own quality, over all its settings at that budget.

    `saving` is None where none reaches that quality.
    """
    ours = arena.measured[arena.index(CQL_ANY_RISK)]
    rows = []
    for f in arena.baselines:
        for b, budget_usd in enumerate(arena.budgets_usd):
            theirs = arena.at(f, b)
            cost = np.array([row[b].cost_usd_per_turn for row in ours])
            quality = np.array([row[b].quality for row in ours])
            ours_usd = cost_at_quality(cost, quality, theirs.quality)
            reached = bool(np.isfinite(ours_usd)) and theirs.cost_usd_per_turn > 0
            rows.append(
                {
                    "baseline": arena.families[f].name,
                    "budget": budget_usd / arena.reference_cost_usd,
                    "saving": 1 - ours_usd / theirs.cost_usd_per_turn if reached else None,
                }
            )
    return rows
