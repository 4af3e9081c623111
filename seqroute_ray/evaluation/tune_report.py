"""What a search found, as a page: the metric against each setting, over gradient steps, and the trials."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from seqroute_ray.evaluation.plots import STYLE, svg

TEMPLATE = "tune.html.jinja"
NOT_SETTINGS = {"trial", "status", "num_steps", "aiq", "aiq_log", "quality", "cost_usd_per_turn", "bankruptcy_rate"}
COLUMNS = 3  # of plots
WIDE_RATIO = 50  # of the largest to the smallest value: beyond it a logarithmic axis names powers of ten only
BEST = "#d55e00"
Row = dict[str, Any]


def write_tune_report(results: Path, metric: str, path: Path, logarithmic: Collection[str] = ()) -> None:
    """results: Parquet, one row a look of a trial at the tune part (training/tune.py); logarithmic: settings."""
    looks = pq.read_table(results).to_pylist()
    best = best_looks(looks, metric)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("seqroute_ray.evaluation", "."), autoescape=True)
    page = environment.get_template(TEMPLATE).render(
        metric=metric.upper(),
        settings=settings_in(looks),
        trials=best,
        num_looks=len(looks),
        against_settings=Markup(svg(against_settings(best, metric, logarithmic))),  # nosec B704  # noqa: S704 - our own SVG
        over_steps=Markup(svg(over_steps(looks, metric))),  # nosec B704  # noqa: S704
    )
    path.write_text(page)


def settings_in(looks: Sequence[Row]) -> list[str]:
    return [name for name in looks[0] if name not in NOT_SETTINGS]


def best_looks(looks: Sequence[Row], metric: str) -> list[Row]:
    """Each trial's look with the highest metric, with the steps it came to; the best trial first."""
    best: dict[str, Row] = {}
    for look in looks:
        before = best.get(look["trial"], look)
        steps = max(before.get("last_step", 0), look["num_steps"])
        best[look["trial"]] = {**max(before, look, key=lambda one: one[metric]), "last_step": steps}
    return sorted(best.values(), key=lambda one: -one[metric])


def against_settings(trials: Sequence[Row], metric: str, logarithmic: Collection[str] = ()) -> Figure:
    """One plot a setting; the colour tells how far a trial came."""
    names = settings_in([{k: v for k, v in trials[0].items() if k != "last_step"}])
    num_rows = -(-len(names) // COLUMNS)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(num_rows, COLUMNS, figsize=(11, 2.6 * num_rows), sharey=True, squeeze=False)
        steps = [trial["last_step"] for trial in trials]
        for axis, name in zip(axes.flat, names, strict=False):
            points = _scatter(axis, name, trials, metric, steps)
            if name in logarithmic:
                _make_logarithmic(axis, [trial[name] for trial in trials])
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for row in axes:
            row[0].set_ylabel(metric.upper())
        figure.tight_layout()
        if min(steps) < max(steps):
            figure.colorbar(points, ax=axes, label="gradient steps", pad=0.02, aspect=45)
    return figure


def _scatter(axis: Axes, name: str, trials: Sequence[Row], metric: str, steps: Sequence[int]) -> Any:
    values = [trial[name] for trial in trials]
    if not all(isinstance(value, float) for value in values):  # a choice: one place for each value
        places = sorted(set(values), key=lambda value: (len(str(value)), str(value)))
        axis.set_xticks(range(len(places)), [str(place) for place in places])
        axis.set_xlim(-0.5, len(places) - 0.5)
        values = [places.index(value) for value in values]
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel(name)
    axis.margins(0.1)  # the ring is larger than a point
    axis.scatter(values[:1], [trials[0][metric]], s=130, facecolors="none", edgecolors=BEST, linewidths=1.8)
    return axis.scatter(values, [trial[metric] for trial in trials], c=steps, cmap="viridis", s=28)


def _make_logarithmic(axis: Axes, values: Sequence[float]) -> None:
    axis.set_xscale("log")
    is_wide = max(values) / min(values) > WIDE_RATIO
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def over_steps(looks: Sequence[Row], metric: str) -> Figure:
    """One line a trial; the best one is drawn strong."""
    winner = max(looks, key=lambda look: float(look[metric]))["trial"]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.6))
        for trial in sorted({look["trial"] for look in looks}, key=lambda trial: trial == winner):
            own = sorted((look["num_steps"], look[metric]) for look in looks if look["trial"] == trial)
            colour, width = (BEST, 2.2) if trial == winner else ("#999999", 1.0)
            axis.plot(*zip(*own, strict=True), marker=".", color=colour, lw=width)
        axis.set_xlabel("gradient steps")
        axis.set_ylabel(metric.upper())
        figure.tight_layout()
    return figure
