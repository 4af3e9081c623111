"""Do off-policy intervals hold the truth? Logs of one action a turn, drawn from outcomes that are all known.

    python benchmarks/ope.py [--num-logs 1000] [--own-questions]

Population: the tune and test questions of pool2024's trio, and sessions of 2-4 of them, half of these on one source.
Each log draws questions from the population, sessions that share them, and one action a turn: the logger takes
PREFERRED, and on a share `epsilon` of the turns any model. The truth of each target policy is its replay on
`num_true_sessions` sessions of the population. With --own-questions no two sessions share a question, and a group is a
session, as in a server's decision log. Estimates of outcomes come from the fit part. Ends with one JSON line.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import tyro
from _processes import machine
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.fitting import EstimatorConfig, fit_estimator, observe
from seqroute_ray.core.mdp import REFERENCE_TURNS, StateLayout, TurnFeatures, expected_turns_left, running_mean
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.data.bundled import EMBEDDER, Outcomes, load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL
from seqroute_ray.evaluation.baselines import FixedModel
from seqroute_ray.evaluation.metrics import question_replicates
from seqroute_ray.evaluation.ope import Estimate, Estimator, OffPolicy
from seqroute_ray.evaluation.ope_log import Exploring, StochasticPolicy, follow, target_probabilities
from seqroute_ray.evaluation.replay import ReplayData, Turns, replay
from seqroute_ray.evaluation.routers import Myopic

PREFERRED = "llama-3.1-70b-instruct"
LENGTHS = (2, 3, 4)
FOCUSED_SHARE = 0.5
ESS_EDGES = (0, 25, 50, 100, 200, 10_000)
EFFECTIVE_EDGES = (0, 5, 10, 20, 40, 10_000)
NUM_REPLICATES, BOOTSTRAP_EVERY = 200, 5  # the bootstrap is for comparison: every fifth log is enough


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_logs: int = 1000
    num_sessions: int = 400  # of a log
    num_questions: int = 400  # of a log
    own_questions: bool = False
    epsilon: float = 0.3  # share of uniform turns of the logger
    budget: float = 0.15  # multiple of the reference cost
    num_true_sessions: int = 200_000
    seed: int = 0


@dataclass(frozen=True)
class Constant:
    """The same chances [K] in every state."""

    chances: tuple[float, ...]

    def probabilities(self, data: ReplayData, turns: Turns) -> FloatArray:  # noqa: ARG002
        return np.tile(self.chances, (len(turns.row), 1))


@dataclass(frozen=True)
class Mixture:
    """On a share of the turns the second policy."""

    first: StochasticPolicy
    second: StochasticPolicy
    share: float

    def probabilities(self, data: ReplayData, turns: Turns) -> FloatArray:
        return (1 - self.share) * self.first.probabilities(data, turns) + self.share * self.second.probabilities(
            data, turns
        )


@dataclass(frozen=True)
class Acting:
    """Draws its actions."""

    policy: StochasticPolicy
    rng: np.random.Generator

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return draw_actions(self.policy.probabilities(data, turns), self.rng)


def draw_actions(chances: FloatArray, rng: np.random.Generator) -> IntArray:
    """[n] from chances [n, K]."""
    below = chances.cumsum(axis=1) < rng.random(len(chances))[:, None]
    return np.asarray(np.minimum(below.sum(axis=1), chances.shape[1] - 1))


@dataclass(frozen=True)
class World:
    """The population of questions, and what policies know of them."""

    outcomes: Outcomes  # [Q]
    layout: StateLayout
    features: TurnFeatures  # [Q]; history is the question's own summary

    @classmethod
    def bundled(cls) -> "World":
        outcomes = load_outcomes().select(DEFAULT_POOL)
        is_fit = outcomes.part == "fit"
        estimator = fitted(outcomes, np.flatnonzero(is_fit))
        rest = np.flatnonzero(~is_fit)
        queries = logged(outcomes, np.ones(len(rest), dtype=np.int64), rest, rest, 0 * rest, 1.0).queries
        summary = estimator.features.summary(queries)
        layout = StateLayout(
            num_models=len(outcomes.catalog),
            summary_width=summary.shape[1],
            reference_cost_usd=float(REFERENCE_TURNS * outcomes.cost_usd[is_fit].mean(axis=0).max()),
            expected_turns_left=expected_turns_left(np.array(LENGTHS)),
        )
        arrays = {name: value[~is_fit] for name, value in vars(outcomes).items() if name != "catalog"}
        features = TurnFeatures(estimator.predict_from(summary, queries, outcomes.catalog), summary)
        return cls(replace(outcomes, **arrays), layout, features)

    def compose(self, num_sessions: int, drawn: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Lengths [S], and for each turn [N] an index into the drawn questions."""
        lengths = rng.choice(LENGTHS, size=num_sessions)
        session = np.repeat(np.arange(num_sessions), lengths)
        which = rng.integers(len(drawn), size=len(session))
        source = self.outcomes.source[drawn]
        theirs = rng.choice(source, size=num_sessions)[session]
        focused = (rng.random(num_sessions) < FOCUSED_SHARE)[session]
        for name in np.unique(source):
            rows = np.flatnonzero(focused & (theirs == name))
            which[rows] = rng.choice(np.flatnonzero(source == name), size=len(rows))
        return lengths, which

    def data(self, sessions: Sessions, query: IntArray) -> ReplayData:
        features = self.features.take(query)
        history = running_mean(features.history, sessions.offsets)
        return ReplayData(sessions, self.layout, replace(features, history=history))


def fitted(outcomes: Outcomes, query: IntArray) -> OutcomeEstimator:
    sessions = logged(outcomes, np.ones(len(query), dtype=np.int64), query, query, 0 * query, 1.0)
    return fit_estimator(observe(sessions), EstimatorConfig(), outcomes.catalog.names)


def logged(
    outcomes: Outcomes,
    lengths: IntArray,
    query: IntArray,
    group: NDArray[Any],
    action: IntArray,
    propensity: FloatArray | float,
) -> Sessions:
    """Sessions of these questions [N], groups, actions and propensities."""
    rows, cost_nusd = np.arange(len(query)), to_nusd(outcomes.cost_usd)[query]
    return Sessions(
        catalog=outcomes.catalog,
        embedder=EMBEDDER,
        session_id=np.arange(len(lengths)).astype(np.str_),
        part=np.full(len(lengths), ""),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        embedding=outcomes.embedding[query],
        action=action,
        quality=outcomes.quality[query, action],
        cost_nusd=cost_nusd[rows, action],
        prompt_tokens=outcomes.prompt_tokens[query, 0],
        propensity=np.broadcast_to(np.float32(propensity), query.shape),
        group_id=group.astype(np.str_),
        source=outcomes.source[query],
        outcome_quality=outcomes.quality[query],
        outcome_cost_nusd=cost_nusd,
    )


def logger_of(world: World, epsilon: float) -> Constant:
    names = world.outcomes.catalog.names
    return Constant(tuple(epsilon / len(names) + (1 - epsilon) * (name == PREFERRED) for name in names))


def targets_of(world: World, settings: Settings) -> dict[str, StochasticPolicy]:
    """From near to far. The routing rules are lambda-greedy on the estimates."""
    price = 1 / world.layout.reference_cost_usd
    logger, preferred = logger_of(world, settings.epsilon), world.outcomes.catalog.action(PREFERRED)
    return {
        "explores half as much": logger_of(world, settings.epsilon / 2),
        "logger, 30 % lambda-greedy": Mixture(logger, Exploring(Myopic(price)), 0.3),
        "always the preferred model": Exploring(FixedModel(preferred)),
        "thrifty lambda-greedy, explores 20 %": Exploring(Myopic(8 * price), 0.2),
        "lambda-greedy": Exploring(Myopic(price)),
    }


def truths(world: World, targets: dict[str, StochasticPolicy], settings: Settings) -> dict[str, list[float]]:
    """Quality a turn and bankruptcies on many sessions of the population."""
    rng = np.random.default_rng(settings.seed)
    lengths, query = world.compose(settings.num_true_sessions, np.arange(len(world.outcomes.query_id)), rng)
    sessions = logged(world.outcomes, lengths, query, query, 0 * query, 1.0)
    data, budget_nusd = world.data(sessions, query), budgets(world, settings, len(lengths))
    found = {}
    for name, target in targets.items():
        result = replay(Acting(target, rng), data, budget_nusd)
        found[name] = [float(result.quality.mean(dtype=np.float64)), float(result.bankrupt.mean())]
    return found


def budgets(world: World, settings: Settings, num_sessions: int) -> IntArray:
    return np.full(num_sessions, to_nusd(settings.budget * world.layout.reference_cost_usd))


def draw_log(world: World, settings: Settings, rng: np.random.Generator) -> tuple[Sessions, IntArray]:
    """Sessions without a word of what was not taken, and the question of each turn."""
    population = len(world.outcomes.query_id)
    every = np.arange(population)
    drawn = every if settings.own_questions else rng.integers(population, size=settings.num_questions)
    lengths, which = world.compose(settings.num_sessions, drawn, rng)
    group = np.repeat(np.arange(len(lengths)), lengths) if settings.own_questions else which
    chances = np.tile(logger_of(world, settings.epsilon).chances, (len(which), 1))
    action = draw_actions(chances, rng)
    propensity = chances[np.arange(len(action)), action]
    sessions = logged(world.outcomes, lengths, drawn[which], group, action, propensity)
    nothing = np.full_like(sessions.outcome_quality, np.nan)
    return replace(sessions, outcome_quality=nothing, outcome_cost_nusd=np.full(nothing.shape, -1)), drawn[which]


@dataclass(frozen=True)
class Row:
    """One estimate from one log."""

    target: str
    found: Estimate
    why: str  # it may not be concluded
    truth: float
    bootstrap: tuple[float, float] | None

    @property
    def holds(self) -> bool:
        return self.found.interval[0] <= self.truth <= self.found.interval[1]


def rows_of(
    world: World,
    targets: dict[str, StochasticPolicy],
    truth: dict[str, list[float]],
    settings: Settings,
    number: int,
) -> list[Row]:
    """Every estimate from one log."""
    sessions, query = draw_log(world, settings, np.random.default_rng([settings.seed, number]))
    data, rows = world.data(sessions, query), []
    paths = follow(sessions, budgets(world, settings, sessions.num_sessions))
    boots = number % BOOTSTRAP_EVERY == 0 and not settings.own_questions
    weight = question_replicates(sessions, NUM_REPLICATES, number).weight if boots else None
    for name, target in targets.items():
        log = OffPolicy.of(paths, target_probabilities(target, data, paths), world.layout, data.features)
        for estimator in get_args(Estimator):
            found = log.estimate(estimator)
            low_high = None if weight is None else np.nanquantile(log.sums(estimator).replicate(weight), [0.025, 0.975])
            bootstrap = None if low_high is None else (float(low_high[0]), float(low_high[1]))
            rows.append(Row(name, found, log.why_not or log.hangs_on_few(found), truth[name][0], bootstrap))
    return rows


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one target and estimator."""
    kept = [row for row in rows if not row.why]
    errors = np.array([row.found.value - row.truth for row in kept])
    boots = [(row.bootstrap, row.truth) for row in kept if row.bootstrap]
    return {
        "refused": round(1 - len(kept) / len(rows), 3),
        "ess": round(float(np.mean([row.found.effective_sample_size for row in rows])), 1),
        "effective_clusters": round(float(np.mean([row.found.num_effective for row in rows])), 1),
        "coverage": mean_of([row.holds for row in kept]),
        "width": mean_of([row.found.interval[1] - row.found.interval[0] for row in kept]),
        "bias": mean_of(errors),
        "sd": round(float(np.std(errors)), 4) if kept else None,
        "standard_error": mean_of([row.found.standard_error for row in kept]),
        "bootstrap_coverage": mean_of([low <= truth <= high for (low, high), truth in boots]),
        "bootstrap_width": mean_of([high - low for (low, high), _ in boots]),
    }


def mean_of(values: Sequence[float] | FloatArray) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def by_size(rows: Sequence[Row], attribute: str, edges: Sequence[int]) -> dict[str, Any]:
    """Coverage whether or not it may be concluded, by size: what the thresholds are chosen by."""
    size = np.array([getattr(row.found, attribute) for row in rows])
    table = {}
    for low, high in pairwise(edges):
        inside = [row for row, value in zip(rows, size, strict=True) if low <= value < high]
        table[f"{low}-{high}"] = {
            name: [len(some), mean_of([row.holds for row in some])]
            for name in get_args(Estimator)
            if (some := [row for row in inside if row.found.estimator == name])
        }
    return table


def main(settings: Settings) -> None:
    started, world = time.monotonic(), World.bundled()
    targets = targets_of(world, settings)
    truth = truths(world, targets, settings)
    print(json.dumps(truth), file=sys.stderr)
    rows = []
    for number in range(settings.num_logs):
        rows += rows_of(world, targets, truth, settings, number)
        if (number + 1) % 50 == 0:
            print(f"{number + 1} logs, {time.monotonic() - started:.0f} s", file=sys.stderr)
    table = {
        name: {"truth": truth[name][0], "bankruptcies": truth[name][1]}
        | {e: summary([r for r in rows if r.target == name and r.found.estimator == e]) for e in get_args(Estimator)}
        for name in targets
    }
    result = {
        "settings": asdict(settings),
        "targets": table,
        "by_ess": by_size(rows, "effective_sample_size", ESS_EDGES),
        "by_effective_clusters": by_size(rows, "num_effective", EFFECTIVE_EDGES),
        "seconds": round(time.monotonic() - started),
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
