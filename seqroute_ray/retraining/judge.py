"""New against current policy on held-out sessions at equal budgets: by replay, or off-policy without outcomes.

Both policies are judged on the same sessions, and differences are paired: what is hard for one is hard for the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.metrics import Interval, Replicates, interval, question_replicates
from seqroute_ray.evaluation.ope import OffPolicy
from seqroute_ray.evaluation.ope_estimators import Sums, doubly_robust, strata
from seqroute_ray.evaluation.ope_fqe import fitted_q
from seqroute_ray.evaluation.ope_intervals import Clusters, Spread, spread
from seqroute_ray.evaluation.ope_log import Exploring, check_propensities, follow, target_probabilities
from seqroute_ray.evaluation.replay import ReplayData, replay
from seqroute_ray.retraining.config import GateConfig

Figure = Literal["quality", "bankruptcy", "cost_usd"]
SIDES = ("current", "new")
MIN_EFFECTIVE = 3.0  # clusters that an error comes from: of fewer no error can be told, and no quantile
FIGURES: tuple[Figure, ...] = ("quality", "bankruptcy", "cost_usd")  # a turn, share of sessions, a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """New minus current, of one figure at one budget."""

    figure: Figure
    budget: float  # multiple of the current policy's reference cost
    current: float
    new: float
    interval: Interval  # 95 %, of new - current


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is known of the two policies."""

    method: Literal["replay", "off-policy"]
    num_sessions: int
    effective_sample_size: float  # the smallest of all budgets and both policies; sessions, where they are replayed
    why_not: str  # why nothing can be concluded; empty where something can
    differences: tuple[Difference, ...]


def judge(current: PolicyArtefact, new: PolicyArtefact, sessions: Sessions, config: GateConfig, seed: int) -> Judgement:
    """Raises DataError where sessions have neither every model's outcome nor propensities to weigh them by."""
    if all(sessions.over(artefact.catalog).has_outcomes for artefact in (current, new)):
        return _by_replay(current, new, sessions, config, seed)
    return _off_policy(current, new, sessions, config)


def _by_replay(
    current: PolicyArtefact, new: PolicyArtefact, sessions: Sessions, config: GateConfig, seed: int
) -> Judgement:
    replicates = question_replicates(sessions, config.num_replicates, seed)
    data = [
        ReplayData.prepare(sessions.over(artefact.catalog), artefact.estimator, artefact.layout)
        for artefact in (current, new)
    ]
    differences = []
    for budget, budget_usd in _budgets(current, config):
        money = np.full(sessions.num_sessions, to_nusd(budget_usd))
        old, young = (
            _replayed(artefact, seen, money, replicates) for artefact, seen in zip((current, new), data, strict=True)
        )
        for figure, (at_old, old_draws), (at_new, new_draws) in zip(FIGURES, old, young, strict=True):
            bounds = interval(new_draws - old_draws)
            differences.append(Difference(figure=figure, budget=budget, current=at_old, new=at_new, interval=bounds))
    num = sessions.num_sessions
    return Judgement(
        method="replay", num_sessions=num, effective_sample_size=num, why_not="", differences=tuple(differences)
    )


def _replayed(
    artefact: PolicyArtefact, data: ReplayData, budget_nusd: IntArray, replicates: Replicates
) -> list[tuple[float, FloatArray]]:
    """Value and bootstrap values of FIGURES."""
    result = replay(QPolicy(artefact.network, artefact.risk), data, budget_nusd)
    cost_usd = to_usd(result.cost_nusd)
    quality_draws, cost_draws = replicates.means(np.stack([result.quality, cost_usd], axis=1)).T
    return [
        (float(result.quality.mean(dtype=np.float64)), quality_draws),
        (float(result.bankrupt.mean()), replicates.rate(result.bankrupting)),
        (float(cost_usd.mean()), cost_draws),
    ]


def _budgets(current: PolicyArtefact, config: GateConfig) -> list[tuple[float, float]]:
    """Each as a multiple, and in USD."""
    return [(multiple, multiple * current.layout.reference_cost_usd) for multiple in config.budgets]


def _off_policy(current: PolicyArtefact, new: PolicyArtefact, sessions: Sessions, config: GateConfig) -> Judgement:
    union = _larger(current, new)
    joint = sessions.over(union.catalog)
    check_propensities(joint)
    differences: list[Difference] = []
    reasons, sizes = [], []
    for budget, budget_usd in _budgets(current, config):
        logs = [_log(artefact, union, joint, budget_usd, config) for artefact in (current, new)]
        sizes += [log.effective_sample_size for log in logs]
        why = [f"{name} policy, budget {budget:g}: {log.why_not}" for name, log in zip(SIDES, logs, strict=True)]
        reasons += [reason for reason, log in zip(why, logs, strict=True) if log.why_not]
        if not reasons:
            differences += _differences(budget, logs, joint)
    return Judgement(
        method="off-policy",
        num_sessions=joint.num_sessions,
        effective_sample_size=min(sizes),
        why_not="; ".join(reasons),
        differences=() if reasons else tuple(differences),
    )


def _larger(current: PolicyArtefact, new: PolicyArtefact) -> PolicyArtefact:
    """The one whose pool holds the other's. Raises DataError."""
    for one, other in ((current, new), (new, current)):
        if set(other.catalog.names) <= set(one.catalog.names):
            return one
    raise DataError(
        f"pools {', '.join(current.catalog.names)} and {', '.join(new.catalog.names)}: a log without outcomes can only "
        "compare a pool with a part of it; add and remove models in two rounds, or bring outcomes"
    )


def _log(
    artefact: PolicyArtefact, union: PolicyArtefact, sessions: Sessions, budget_usd: float, config: GateConfig
) -> OffPolicy:
    """The log seen by a policy; sessions: over the union's pool, whose estimates also carry the doubly robust fit."""
    paths = follow(sessions, np.full(sessions.num_sessions, to_nusd(budget_usd)))
    own = ReplayData.of_log(sessions.over(artefact.catalog), artefact.estimator, artefact.layout)
    chances = target_probabilities(Exploring(QPolicy(artefact.network, artefact.risk)), own, paths)
    target = np.zeros((len(chances), len(sessions.catalog)))
    target[:, [sessions.catalog.action(name) for name in artefact.catalog.names]] = chances
    features = ReplayData.of_log(sessions, union.estimator, union.layout).features
    return OffPolicy.of(paths, target, union.layout, features, follows_forced=True, min_ess=config.min_ess)


def _differences(budget: float, logs: list[OffPolicy], sessions: Sessions) -> list[Difference]:
    """Of FIGURES; logs: of the current and the new policy."""
    makers: tuple[Callable[[OffPolicy], Sums], ...] = (_quality, _bankruptcy, _cost)
    rows = []
    for figure, make in zip(FIGURES, makers, strict=True):
        old, young = (make(log) for log in logs)
        found = spread(young.influence(left_out=True) - old.influence(left_out=True), Clusters.of(sessions))
        # A bankruptcy or two that differ are few draws: an interval is at least as wide as from MIN_EFFECTIVE of them.
        bounds = Spread(found.error, max(found.num_effective, MIN_EFFECTIVE)).interval(young.value() - old.value())
        rows.append(Difference(figure=figure, budget=budget, current=old.value(), new=young.value(), interval=bounds))
    return rows


def _quality(log: OffPolicy) -> Sums:
    return doubly_robust(log.paths, log.weights, log.unit, fitted_q(log.paths, log.weights, log.action_features))


def _bankruptcy(log: OffPolicy) -> Sums:
    """Weighted share of sessions, by the weight of the whole session."""
    ends = np.zeros(len(log.unit))
    ends[log.paths.sessions.offsets[1:] - 1] = 1.0
    mass = log.weights.upto * ends
    went = np.repeat(log.paths.bankrupt, log.paths.sessions.num_turns)
    return Sums(mass * went, mass, np.zeros(len(ends), dtype=np.int64), np.ones(len(ends)))


def _cost(log: OffPolicy) -> Sums:
    """USD a turn, weighted as qualities are."""
    spent_usd = np.where(log.paths.served, to_usd(log.paths.sessions.cost_nusd), 0.0)
    return Sums(log.weights.upto * spent_usd, log.weights.upto, strata(log.paths.sessions), log.unit)
