"""The report's figures as SVG text: frontier, bankruptcy, share of models."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

Report = dict[str, Any]
STYLE: Any = {
    "svg.fonttype": "path",  # the same everywhere, whatever fonts the reader has
    "svg.hashsalt": "seqroute",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}
COLOURS = {"cql": "#c1272d", "behaviour cloning": "#8856a7", "random": "#969696", "budget heuristic": "#0868ac"}
COLOURS |= {"table by source": "#238b45", "oracle": "#252525"}
MODEL_COLOURS = ("#bdd7e7", "#6baed6", "#2171b5", "#08306b", "#54278f", "#9e9ac8", "#fdae6b", "#a1d99b")


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, without XML prologue or date."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def curves(report: Report) -> dict[tuple[str, float | None], list[dict[str, Any]]]:
    """Rows by (policy, lambda), in order of budget."""
    grouped: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        grouped.setdefault((row["policy"], row["lambda_per_usd"]), []).append(row)
    return grouped


def model_colours(report: Report) -> dict[str, str]:
    return {name: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, name in enumerate(report["header"]["models"])}


def _line(
    axes: Any, report: Report, policy: str, x: Sequence[float], y: Sequence[float], strong: bool, label: str
) -> None:
    single = policy.removeprefix("only ")
    colour = model_colours(report)[single] if policy.startswith("only ") else COLOURS[policy]
    dashes = "--" if policy == "oracle" else ":" if policy.startswith("only ") else "-"
    axes.plot(
        x,
        y,
        dashes,
        color=colour,
        marker="o",
        ms=4 if strong else 3,
        lw=2.4 if strong else 1.3,
        label=label,
        zorder=3 if strong else 2,
    )


def frontier(report: Report) -> Figure:
    """Quality against cost a turn (log axis): each line joins the budgets of one policy; the sweep joins lambdas."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 5.2))
        for (policy, value), rows in curves(report).items():
            if value:
                continue
            x, y = [1e3 * r["cost_usd_per_turn"] for r in rows], [r["quality"] for r in rows]
            label = "cql, λ = 0" if policy == "cql" else policy
            _line(axes, report, policy, x, y, policy == "cql", label)
            if policy == "cql":
                low, high = ([r["quality_ci"][i] for r in rows] for i in (0, 1))
                axes.fill_between(x, low, high, color=COLOURS["cql"], alpha=0.12, lw=0)
        sweep = [rows[-1] for (policy, _), rows in curves(report).items() if policy == "cql"]
        x, y = [1e3 * r["cost_usd_per_turn"] for r in sweep], [r["quality"] for r in sweep]
        axes.plot(
            x, y, "-", color="#f4a582", marker="D", ms=4, lw=1.6, label="cql, λ sweep at the widest budget", zorder=3
        )
        # The frame follows the policies that serve their sessions: a strong model alone falls to 0 at tight budgets.
        served = [r for r in report["rows"] if r["policy"] in ("cql", "oracle")]
        worst, best = min(r["quality"] for r in served), max(r["quality"] for r in served)
        axes.set(ylim=(worst - 0.1, best + 0.03))
        costs = [1e3 * r["cost_usd_per_turn"] for r in report["rows"] if r["quality"] >= worst - 0.1]
        if paid := [cost for cost in costs if cost > 0]:  # a pool of free models has no cost axis
            axes.set(xscale="log", xlim=(0.8 * min(paid), 1.3 * max(paid)))
        axes.set(xlabel="cost a turn, thousandths of a US dollar (log)", ylabel="quality a turn")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return figure


def bankruptcy(report: Report) -> Figure:
    """Share of bankrupt sessions against the budget."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 4))
        for (policy, value), rows in curves(report).items():
            if value or policy == "oracle":
                continue
            y = [100 * r["bankruptcy_rate"] for r in rows]
            _line(
                axes,
                report,
                policy,
                report["header"]["budgets"],
                y,
                policy == "cql",
                "cql, λ = 0" if policy == "cql" else policy,
            )
        axes.set(xscale="log", xlabel="budget, multiples of the reference cost (log)", ylabel="bankrupt sessions, %")
        axes.set_xticks(report["header"]["budgets"], [f"{b:g}" for b in report["header"]["budgets"]])
        axes.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return figure


def model_shares(report: Report) -> Figure:
    """Which model CQL (lambda 0) picks, by remaining budget."""
    shares = report["shares_by_remaining"]
    edges = shares["edges"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 3.6))
        below = [0.0] * len(shares["share"])
        for i, (name, colour) in enumerate(model_colours(report).items()):
            heights = [
                row[i] if turns else 0.0 for row, turns in zip(shares["share"], shares["num_turns"], strict=True)
            ]
            widths = [high - low for low, high in pairwise(edges)]
            axes.bar(
                edges[:-1], heights, widths, below, align="edge", color=colour, edgecolor="white", lw=0.8, label=name
            )
            below = [b + h for b, h in zip(below, heights, strict=True)]
        axes.set(xscale="log", ylim=(0, 1), xlim=(edges[0], edges[-1]), ylabel="share of turns")
        axes.set_xlabel("remaining budget before the turn, multiples of the reference cost (log)")
        axes.set_xticks([0.01, 0.03, 0.1, 0.3, 1.0], ["0.01", "0.03", "0.1", "0.3", "1"])
        axes.minorticks_off()
        axes.grid(visible=False)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return figure
