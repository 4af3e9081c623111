"""Every policy of a report with the settings of its knob, so that each is compared at its best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.fitting import EstimatorConfig, cross_fitted
from seqroute_ray.core.policy import PolicyArtefact, RiskPrices
from seqroute_ray.core.sessions import Sessions, observed_outcomes
from seqroute_ray.evaluation.aiq import frontier
from seqroute_ray.evaluation.baselines import (
    BudgetHeuristic,
    FirstLarge,
    FixedModel,
    QPolicy,
    RandomModel,
    StaticMixture,
)
from seqroute_ray.evaluation.planners import (
    BudgetPlan,
    DynamicProgram,
    Pacing,
    TableDynamicProgram,
    TypeTable,
    TypicalTurns,
)
from seqroute_ray.evaluation.replay import Policy
from seqroute_ray.evaluation.routers import BoundaryGuided, HardTurns, Myopic, Threshold

CQL, CLONING, ORACLE = "cql", "behaviour cloning", "oracle"
CQL_ANY_RISK = "cql, risk chosen"  # the same network, with the price of a bankruptcy as a knob like any baseline's
LEARNED = (CQL, CQL_ANY_RISK, CLONING)  # differ from one training seed to the next
RISKS = (0.5, 5.0, 20.0, 80.0)  # price of a bankruptcy, in turns of full quality
SLACKS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)  # share of an even split that is spent
PENALTIES = (0.0, 2.0, 5.0, 20.0)  # of a bankruptcy, in turns of full quality
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
THRESHOLDS = (-1.0, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of a difference or a chance
MAX_PAIRS = 6  # of models, for the two-model routers
PRICES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0)  # quality per reference cost
FIRST_TURNS = (1, 2, 3, 5, 8)


Pair = tuple[int, int]  # (cheap, dear) models


@dataclass(frozen=True)
class Setting:
    """One value of a policy's knob."""

    knob: str  # for the reader: "slack 0.6"; "" for a policy without a knob
    policy: Policy


@dataclass(frozen=True)
class Family:
    """A policy and the settings of its knob."""

    name: str
    settings: tuple[Setting, ...]

    @classmethod
    def of(cls, name: str, knob: str, values: Sequence[float], make: Callable[[float], Policy]) -> "Family":
        return cls(name, tuple(Setting(f"{knob} {value:g}", make(value)) for value in values))

    @classmethod
    def without_knob(cls, name: str, policy: Policy) -> "Family":
        return cls(name, (Setting("", policy),))


def learned_families(
    artefact: PolicyArtefact, cloning: PolicyArtefact | None, lambdas_per_usd: Sequence[float]
) -> list[Family]:
    """CQL over its lambdas, as the artefact serves and at any price of a bankruptcy; behaviour cloning."""
    any_risk = [
        Setting(f"risk {risk:g}, lambda {value:g}", QPolicy(artefact.network, RiskPrices((1.0,), (risk,)), value))
        for risk in RISKS
        for value in lambdas_per_usd
    ]
    families = [
        Family.of(CQL, "lambda", lambdas_per_usd, lambda value: QPolicy(artefact.network, artefact.risk, value)),
        Family(CQL_ANY_RISK, tuple(any_risk)),
    ]
    if cloning is not None:
        families.append(Family.without_knob(CLONING, QPolicy(cloning.network, cloning.risk, plans=False)))
    return families


def simple_families(names: Sequence[str], mean_cost_usd: FloatArray, seed: int) -> list[Family]:
    """The baselines that need no fit part."""
    return [
        *(Family.without_knob(f"only {name}", FixedModel(action)) for action, name in enumerate(names)),
        Family.without_knob("random", RandomModel(seed)),
        Family.of("budget heuristic", "slack", SLACKS, lambda value: BudgetHeuristic(mean_cost_usd, value)),
    ]


def fitted_families(sessions: Sessions, artefact: PolicyArtefact) -> list[Family]:
    """The baselines that learn from the policy's own fit part; a two-model router's pair is part of its knob."""
    config = EstimatorConfig(**artefact.configs["estimator"])
    estimates, _ = cross_fitted(sessions, config)
    quality, cost_usd = observed_outcomes(sessions)
    reference_usd = artefact.layout.reference_cost_usd
    typical = TypicalTurns.of(estimates, cost_usd, sessions.num_turns)
    table = TypeTable.fit(sessions.source, quality, cost_usd, config.cost_quantile)
    seen_by_table = TypicalTurns.of(table.estimates_of(sessions.source), cost_usd, sessions.num_turns)
    mean_quality, mean_cost = np.nanmean(quality, axis=0), np.nanmean(cost_usd, axis=0)
    pairs = model_pairs(mean_cost, mean_quality)
    features = artefact.estimator.features
    hard = {pair: HardTurns.fit(features, sessions, *pair, config) for pair in pairs}
    return [
        Family("static mixture", static_mixtures(mean_cost, mean_quality)),
        _of_pairs("first large", "turns", pairs, FIRST_TURNS, lambda pair, value: FirstLarge(*pair, int(value))),
        _of_pairs("threshold router", "threshold", pairs, THRESHOLDS, lambda pair, value: Threshold(*pair, value)),
        _of_pairs(
            "boundary-guided",
            "threshold",
            pairs,
            THRESHOLDS,
            lambda pair, value: BoundaryGuided(hard[pair], *pair, value),
        ),
        Family.without_knob("greedy on estimates", Myopic()),
        Family.of("myopic", "price", PRICES, lambda value: Myopic(value / reference_usd)),
        Family.of("pacing", "slack", SLACKS, lambda value: Pacing(typical, reference_usd, value)),
        Family.of(
            "dynamic program on types",
            "penalty",
            PENALTIES,
            lambda value: TableDynamicProgram(BudgetPlan(seen_by_table, reference_usd, value), table),
        ),
        Family.of(
            "dynamic program",
            "penalty",
            PENALTIES,
            lambda value: DynamicProgram(BudgetPlan(typical, reference_usd, value)),
        ),
    ]


def _of_pairs(
    name: str, knob: str, pairs: Sequence[Pair], values: Sequence[float], make: Callable[[Pair, float], Policy]
) -> Family:
    """A two-model router: its pair and its knob are chosen together."""
    settings = (
        Setting(f"models {pair[0]}, {pair[1]}; {knob} {value:g}", make(pair, value))
        for pair in pairs
        for value in values
    )
    return Family(name, tuple(settings))


def hull_models(mean_cost_usd: FloatArray, mean_quality: FloatArray) -> list[int]:
    """Single models on the frontier, cheapest first."""
    corners = zip(*frontier(mean_cost_usd, mean_quality), strict=True)
    return [int(np.argmax((mean_cost_usd == cost) & (mean_quality == quality))) for cost, quality in corners]


def model_pairs(mean_cost_usd: FloatArray, mean_quality: FloatArray) -> list[Pair]:
    """(cheap, dear) pairs of models on the frontier, the widest first, at most MAX_PAIRS."""
    hull = hull_models(mean_cost_usd, mean_quality)
    places = sorted(combinations(range(len(hull)), 2), key=lambda place: place[0] - place[1])
    return [(hull[cheap], hull[dear]) for cheap, dear in places[:MAX_PAIRS]] or [(hull[0], hull[0])]


def static_mixtures(mean_cost_usd: FloatArray, mean_quality: FloatArray) -> tuple[Setting, ...]:
    """Coins between neighbours on the hull of the single models: the best static mixture at every cost."""
    hull = hull_models(mean_cost_usd, mean_quality)
    pairs = list(pairwise(hull)) or [(hull[0], hull[0])]
    return tuple(
        Setting(f"models {cheap}, {dear}; share {share:g}", StaticMixture(cheap, dear, share))
        for cheap, dear in pairs
        for share in SHARES
    )
