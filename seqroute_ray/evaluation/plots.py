"""The report's figures as SVG text."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

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
# Colours that colour-blind readers tell apart (Okabe and Ito), for the policies that the figures draw.
COLOURS = {
    "cql": "#d55e00",
    "dynamic program": "#56b4e9",
    "pacing": "#0072b2",
    "dynamic program on types": "#009e73",
    "budget heuristic": "#cc79a7",
    "static mixture": "#999999",
    "behaviour cloning": "#e69f00",
    "oracle": "#000000",
}
MARKERS = {"dynamic program": "s", "pacing": "^", "dynamic program on types": "v", "budget heuristic": "P"}
MARKERS |= {"static mixture": "X", "behaviour cloning": "*", "oracle": "D", "cql": "o"}
MODEL_COLOURS = ("#bdd7e7", "#6baed6", "#2171b5", "#08306b", "#54278f", "#9e9ac8", "#fdae6b", "#a1d99b")
BROKEN_PROMISE = 0.02  # of bankrupt sessions on the evaluated part, where 1 % was asked for on the tune part
WIDEST_DIFFERENCE = 0.12  # of quality, on the axis of paired differences; more is an arrow at the edge


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


def is_drawn(policy: str) -> bool:
    return policy in COLOURS or policy.startswith("only ")


def _look(report: Report, policy: str) -> dict[str, Any]:
    """Colour, dashes and marker of a policy, the same in every figure."""
    if policy.startswith("only "):
        return {"color": model_colours(report)[policy.removeprefix("only ")], "ls": ":", "marker": ".", "lw": 1.3}
    strong = policy == "cql"
    dashes = "--" if policy == "oracle" else "-"
    return {"color": COLOURS[policy], "ls": dashes, "marker": MARKERS[policy], "lw": 2.4 if strong else 1.3}


def _cost(row: dict[str, Any]) -> float:
    """Thousandths of a dollar a turn."""
    return 1e3 * float(row["cost_usd_per_turn"])


def frontier(report: Report) -> Figure:
    """Quality against cost a turn (log axis): each line joins the budgets of one policy."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 5.2))
        for (policy, value), rows in curves(report).items():
            if value or not is_drawn(policy):
                continue
            x, y = [_cost(r) for r in rows], [r["quality"] for r in rows]
            label = "cql, λ = 0" if policy == "cql" else policy
            axes.plot(x, y, ms=5, label=label, zorder=4 if policy == "cql" else 2, **_look(report, policy))
            if policy == "cql":
                low, high = ([r["quality_ci"][i] for r in rows] for i in (0, 1))
                axes.fill_between(x, low, high, color=COLOURS["cql"], alpha=0.12, lw=0)
        _frame(axes, report["rows"])
        axes.set(xlabel="cost a turn, thousandths of a US dollar (log)", ylabel="quality a turn")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return figure


def _frame(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Axes that follow the policies that serve their sessions: a strong model alone falls to 0 at tight budgets."""
    served = [r["quality"] for r in rows if r["policy"] in ("cql", "oracle")]
    lowest = min(served) - 0.06
    axes.set(ylim=(lowest, max(served) + 0.02))
    if paid := [_cost(r) for r in rows if r["quality"] >= lowest and r["cost_usd_per_turn"] > 0]:
        axes.set(xscale="log", xlim=(0.8 * min(paid), 1.3 * max(paid)))  # a pool of free models has no cost axis


def budgets(report: Report) -> Figure:
    """One panel a budget: CQL's lambdas as a line with intervals, every other policy as a point."""
    reference, multiples = report["header"]["reference_cost_usd"], report["header"]["budgets"]
    num_rows = -(-len(multiples) // 3)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(num_rows, 3, figsize=(10, 3 * num_rows), squeeze=False, layout="constrained")
        for axes, multiple in zip(panels.flat, multiples, strict=False):
            rows = [r for r in report["rows"] if abs(r["budget_usd"] / reference - multiple) < 1e-9 * multiple]
            ours = [r for r in rows if r["policy"] == "cql"]
            errors = [
                [r["quality"] - r["quality_ci"][0] for r in ours],
                [r["quality_ci"][1] - r["quality"] for r in ours],
            ]
            look = _look(report, "cql")
            x, y = [_cost(r) for r in ours], [r["quality"] for r in ours]
            axes.errorbar(x, y, errors, ms=4, elinewidth=0.7, zorder=4, label="cql, by λ", **look)
            for row in rows:
                if row["policy"] != "cql" and is_drawn(row["policy"]):
                    look = _look(report, row["policy"]) | {"ls": "none"}
                    axes.plot([_cost(row)], [row["quality"]], ms=7, label=row["policy"], zorder=3, **look)
            _frame(axes, rows)
            axes.set_title(f"budget {multiple:g}x", loc="left", fontsize=10)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        for axes in panels.flat[len(multiples) :]:
            axes.set_visible(False)
        figure.supxlabel("cost a turn, thousandths of a US dollar (log)", fontsize=10)
        figure.supylabel("quality a turn", fontsize=10)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        return figure


def most_quality(report: Report) -> Figure:
    """Paired differences where every policy is free to go bankrupt."""
    return differences(report, "most quality")


def at_most_1_percent_bankrupt(report: Report) -> Figure:
    """Paired differences where every policy is held to 1 % bankrupt sessions."""
    return differences(report, "at most 1 % bankrupt")


def differences(report: Report, regime: str) -> Figure:
    """Paired differences of quality, CQL less each baseline: one panel a budget, intervals, zero line."""
    multiples = report["header"]["budgets"]
    comparisons = [row for row in report["comparisons"] if row["regime"] == regime]
    names = list(dict.fromkeys(row["baseline"] for row in comparisons))
    limit = WIDEST_DIFFERENCE
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(multiples), figsize=(11, 0.9 + 0.28 * len(names)), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, multiple in zip(panels.flat, multiples, strict=True):
            for row in (r for r in comparisons if abs(r["budget"] - multiple) < 1e-9 * multiple):
                place = names.index(row["baseline"])
                colour = "#0072b2" if row["low"] > 0 else "#d55e00" if row["high"] < 0 else "#777777"
                # Hollow: the baseline does not keep the promise that both are held to.
                breaks = regime != "most quality" and row["baseline_bankruptcy_rate"] > BROKEN_PROMISE
                face = "white" if breaks else colour
                if not -limit / 2 < row["difference"] < limit:
                    edge, arrow = (limit * 0.95, ">") if row["difference"] > 0 else (-limit * 0.45, "<")
                    axes.plot([edge], [place], arrow, color=colour, ms=6, mfc=face)
                    continue
                axes.plot([row["low"], row["high"]], [place, place], "-", color=colour, lw=1.6, solid_capstyle="butt")
                axes.plot([row["difference"]], [place], "o", color=colour, ms=4.5, mfc=face)
            axes.axvline(0, color="#222222", lw=0.9)
            axes.set(xlim=(-limit / 2, limit), ylim=(len(names) - 0.5, -0.5))
            axes.set_title(f"{multiple:g}x", loc="left", fontsize=10)
            axes.set_xticks([-0.05, 0, 0.05, 0.1], ["−5", "0", "+5", "+10"], fontsize=8)
        panels.flat[0].set_yticks(range(len(names)), names)
        figure.supxlabel("difference of quality, points (right: cql is better)", fontsize=10)
        return figure


def reliability(report: Report) -> Figure:
    """Estimated against measured quality, one panel a model."""
    rows = report["reliability"]
    columns = min(len(rows), 5)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            -(-len(rows) // columns),
            columns,
            figsize=(2.2 * columns, 2.4 * -(-len(rows) // columns)),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, row in zip(panels.flat, rows, strict=False):
            axes.plot([0, 1], [0, 1], color="#999999", lw=1)
            x, y = [b["estimate"] for b in row["curve"]], [b["outcome"] for b in row["curve"]]
            axes.plot(x, y, "o-", color=COLOURS["cql"], ms=4, lw=1.3)
            axes.set_title(row["model"], fontsize=8, loc="left")
            axes.set(xlim=(0, 1), ylim=(0, 1))
        for axes in panels.flat[len(rows) :]:
            axes.set_visible(False)
        figure.supxlabel("estimated quality", fontsize=10)
        figure.supylabel("measured quality", fontsize=10)
        return figure


def bankruptcy(report: Report) -> Figure:
    """Share of bankrupt sessions against the budget."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 4))
        for (policy, value), rows in curves(report).items():
            if value or policy == "oracle" or not is_drawn(policy):
                continue
            y = [100 * r["bankruptcy_rate"] for r in rows]
            label = "cql, λ = 0" if policy == "cql" else policy
            look = _look(report, policy)
            axes.plot(report["header"]["budgets"], y, ms=5, label=label, zorder=4 if policy == "cql" else 2, **look)
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
