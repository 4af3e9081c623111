"""report.json as a page: figures and tables in one HTML file without scripts or links; the main figure also alone."""

from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from seqroute_ray.evaluation import plots
from seqroute_ray.evaluation.families import CQL

TEMPLATE = "report.html.jinja"


FIGURES = (
    plots.budgets,
    plots.most_quality,
    plots.at_most_1_percent_bankrupt,
    plots.bankruptcy,
    plots.model_shares,
    plots.reliability,
)


def savings_table(report: dict[str, Any]) -> dict[str, list[float | None]]:
    """Share of cost saved at each baseline's own quality, by budget; None: not reached."""
    table: dict[str, list[float | None]] = {}
    for row in report["cost_at_equal_quality"]:
        table.setdefault(row["baseline"], []).append(row["saving"])
    return table


def write_html(report: dict[str, Any], path: Path) -> None:
    """Render the report to `path`, and its main figure to frontier.svg beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seqroute_ray.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}"
    environment.filters["share"] = lambda share: "-" if share is None else f"{100 * share:.1f}"
    by_budget = groupby(
        sorted(report["rows"], key=lambda row: float(row["budget_usd"])), key=lambda row: row["budget_usd"]
    )
    frontier = plots.svg(plots.frontier(report))
    path.with_name("frontier.svg").write_text(frontier)
    page = environment.get_template(TEMPLATE).render(
        header=report["header"],
        verdicts=report["verdicts"],
        by_budget=[(budget, list(rows)) for budget, rows in by_budget],
        # Our own SVG, text escaped by matplotlib.
        frontier=Markup(frontier),  # nosec B704  # noqa: S704
        **{figure.__name__: Markup(plots.svg(figure(report))) for figure in FIGURES},  # nosec B704  # noqa: S704
        aiq=report["aiq"],
        savings=savings_table(report),
        behaviour=[row for row in report["behaviour"] if row["policy"] == CQL],
        reliability_rows=report["reliability"],
    )
    path.write_text(page)
