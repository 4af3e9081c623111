"""How far the outcome estimates can be trusted: calibration and loss against the mean and the table by type."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.sessions import Sessions, observed_outcomes
from seqroute_ray.evaluation.planners import TypeTable
from seqroute_ray.evaluation.replay import ReplayData

NUM_BINS = 10
QUANTILE = 0.95


def reliability(data: ReplayData, fit: Sessions | None) -> list[dict[str, Any]]:
    """By model: log-loss and Brier score of estimate, mean and table, cost error and coverage, reliability curve.

    Each question counts once. Mean and table come from the fit part, and are left out without one.
    """
    _, first = np.unique(data.sessions.group_id, return_index=True)
    outcome, estimates = data.sessions.outcome_quality[first], data.estimates.take(first)
    cost_usd = data.sessions.outcome_cost_nusd[first] / 1e9
    rivals: dict[str, NDArray[np.floating]] = {"estimate": estimates.quality}
    if fit is not None:
        quality, fit_cost_usd = observed_outcomes(fit)
        table = TypeTable.fit(fit.source, quality, fit_cost_usd, QUANTILE)
        rivals["mean"] = np.broadcast_to(np.nanmean(quality, axis=0), outcome.shape)
        rivals["table by type"] = table.estimates_of(data.sessions.source[first]).quality
    rows = []
    for k, name in enumerate(data.sessions.catalog.names):
        rows.append(
            {
                "model": name,
                "log_loss": {rival: log_loss(p[:, k], outcome[:, k]) for rival, p in rivals.items()},
                "brier": {rival: float(np.mean((p[:, k] - outcome[:, k]) ** 2)) for rival, p in rivals.items()},
                "cost_ratio": float(cost_usd[:, k].mean() / max(float(estimates.cost_usd[:, k].mean()), 1e-12)),
                "cost_coverage": float(np.mean(cost_usd[:, k] <= estimates.cost_high_usd[:, k])),
                "curve": curve(estimates.quality[:, k], outcome[:, k]),
            }
        )
    return rows


def log_loss(p: NDArray[np.floating], outcome: NDArray[np.floating]) -> float:
    """Mean cross entropy of outcomes in [0, 1]."""
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return float(-np.mean(outcome * np.log(p) + (1 - outcome) * np.log(1 - p)))


def curve(p: NDArray[np.floating], outcome: NDArray[np.floating]) -> list[dict[str, float]]:
    """Mean estimate against mean outcome in bins of equally many questions."""
    bins = np.array_split(np.argsort(p), min(NUM_BINS, len(p)))
    return [
        {"estimate": float(p[rows].mean()), "outcome": float(outcome[rows].mean()), "num": len(rows)} for rows in bins
    ]
