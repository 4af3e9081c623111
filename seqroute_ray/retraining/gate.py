"""Whether a new policy may be tried: every check with its figure, its limit and what it means."""

import math
from dataclasses import dataclass

from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.retraining.config import GateConfig
from seqroute_ray.retraining.judge import Difference, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question of the gate and its answer."""

    name: str
    passed: bool
    why: str


def check_pool(current: PolicyArtefact, new: PolicyArtefact, catalog_given: bool) -> list[Check]:
    """Servers must be able to swap to the new policy; its artefact has been loaded, so it is whole."""
    prices = {model.name: (model.usd_per_m_input, model.usd_per_m_output) for model in current.catalog.models}
    other = [
        model.name
        for model in new.catalog.models
        if model.name in prices
        and not all(
            math.isclose(a, b, rel_tol=1e-9)
            for a, b in zip(prices[model.name], (model.usd_per_m_input, model.usd_per_m_output), strict=True)
        )
    ]
    same_price = Check(
        name="prices",
        passed=catalog_given or not other,
        why="as the current policy's"
        if not other
        else f"other prices of {', '.join(other)} than the current policy's; give --catalog where they have changed",
    )
    embedder = Check(
        name="embedder",
        passed=current.embedder == new.embedder,
        why=f"{new.embedder}; a canary shares the current policy's, {current.embedder}",
    )
    return [same_price, embedder]


def check_judgement(judgement: Judgement, config: GateConfig) -> list[Check]:
    """Enough data, then no figure that may be worse than allowed."""
    enough = Check(
        name="sessions",
        passed=judgement.num_sessions >= config.min_sessions,
        why=f"{judgement.num_sessions} in the holdout, at least {config.min_sessions} are asked for",
    )
    told = Check(
        name="support",
        passed=not judgement.why_not,
        why=judgement.why_not or f"{judgement.method}, effective sample size {judgement.effective_sample_size:.0f}",
    )
    return [enough, told, *(_check(difference, config) for difference in judgement.differences)]


def _check(row: Difference, config: GateConfig) -> Check:
    low, high = row.interval
    if row.figure == "quality":
        limit, passed, rule = -config.max_quality_loss, low >= -config.max_quality_loss, "the interval must lie above"
    elif row.figure == "bankruptcy":
        limit, rule = config.max_bankruptcy_rise, "the interval must lie below"
        passed = high <= limit
    else:
        limit, rule = config.max_cost_rise * row.current, "the interval must lie below"
        passed = high <= limit
    return Check(
        name=f"{row.figure} at {row.budget:g}x",
        passed=bool(passed),
        why=f"{row.current:.5g} -> {row.new:.5g}, difference {low:+.5g} to {high:+.5g}; {rule} {limit:+.5g}",
    )
