"""AIQ: one number for a whole frontier, and what equal quality costs.

A policy's settings (its knob, at every budget) are points (cost a turn, quality a turn). Their frontier is the upper
concave non-decreasing hull: what a coin between two settings reaches. AIQ is the mean height of the frontier over a
range of costs, from the cheapest to the dearest single model with no budget, flat beyond the policy's own points on
both sides; over cost itself, or over its logarithm. After RouterBench, arXiv:2403.12031.
"""

import numpy as np

from seqroute_ray.core.arrays import FloatArray

GRID = 200  # places of the cost range at which the frontier is averaged


def frontier(cost: FloatArray, quality: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cost and quality of the corners of the upper concave non-decreasing hull of some points, rising in both."""
    order = np.lexsort((-quality, cost))
    corners: list[tuple[float, float]] = []
    for x, y in zip(cost[order].tolist(), quality[order].tolist(), strict=True):
        if corners and y <= corners[-1][1]:
            continue  # dearer and no better
        while len(corners) > 1 and _below(corners[-2], corners[-1], (x, y)):
            corners.pop()
        if corners and x == corners[-1][0]:
            corners.pop()
        corners.append((x, y))
    xs, ys = zip(*corners, strict=True)
    return np.array(xs), np.array(ys)


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """True when b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def aiq(cost: FloatArray, quality: FloatArray, lowest: float, highest: float, *, log_cost: bool) -> float:
    """Mean height of the frontier between two costs; see the module."""
    xs, ys = frontier(cost, quality)
    grid = np.geomspace(lowest, highest, GRID) if log_cost else np.linspace(lowest, highest, GRID)
    return float(np.interp(grid, xs, ys).mean())


def cost_at_quality(cost: FloatArray, quality: FloatArray, wanted: float) -> float:
    """Least cost at which the frontier reaches a quality; NaN where it does not."""
    xs, ys = frontier(cost, quality)
    if wanted > ys[-1]:
        return float("nan")
    return float(xs[0] if wanted <= ys[0] else np.interp(wanted, ys, xs))
