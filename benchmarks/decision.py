"""CPU time of one routing decision: features, estimates, state, network and mask for one turn, in numpy.

    python benchmarks/decision.py [--models MODEL ...]

A policy of the default network's size with random weights; the time does not depend on them. Ends with one JSON line.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tyro

from seqroute_ray.core.estimator import EstimatorConfig, Observations, fit_estimator
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, affordable, encode_state
from seqroute_ray.core.policy import Perceptron, QNetwork, lambda_greedy
from seqroute_ray.core.queries import Queries
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.sample import FINDINGS_POOL
from seqroute_ray.training.config import CqlConfig

NUM_DECISIONS, NUM_ROUNDS = 2_000, 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    models: tuple[str, ...] = FINDINGS_POOL


def perceptron(rng: np.random.Generator, widths: list[int]) -> Perceptron:
    shapes = pairwise(widths)
    return Perceptron([(rng.normal(size=s).astype(np.float32), np.zeros(s[1], dtype=np.float32)) for s in shapes])


def decider(models: tuple[str, ...]) -> Callable[[], Any]:
    """One decision of a fitted estimator and a random network."""
    outcomes, rng = load_outcomes().select(models), np.random.default_rng(0)
    queries = Queries(outcomes.embedding, outcomes.source, outcomes.prompt_tokens[:, 0])
    log_tokens = np.log(np.maximum(outcomes.completion_tokens, 1))
    seen = Observations(queries, outcomes.quality.astype(np.float64), log_tokens, outcomes.query_id)
    estimator = fit_estimator(seen, EstimatorConfig(), outcomes.catalog.names)
    features, cql = estimator.features, CqlConfig()
    layout = StateLayout(
        num_models=len(models),
        summary_width=features.summary_width,
        reference_cost_usd=0.03,
        expected_turns_left=tuple(float(x) for x in range(12, 0, -1)),
    )
    network = QNetwork(
        perceptron(rng, [layout.num_context + NUM_AFTER - NUM_RISK, *cql.hidden, 1]),
        perceptron(rng, [layout.num_context + NUM_AFTER, *cql.risk_hidden, 1]),
        layout.num_context,
    )
    query, money_usd, turn = queries.take(np.array([7])), np.array([0.01]), np.array([2])

    def decide() -> Any:
        summary = features.summary(query)
        estimates = estimator.predict_from(summary, query, outcomes.catalog)
        state = encode_state(layout, TurnFeatures(estimates, summary), money_usd, turn)
        allowed = affordable(estimates.cost_usd, estimates.cost_high_usd, money_usd)
        return lambda_greedy(network.values(state).q_values(2.0), estimates.cost_usd, allowed, 0.0)

    return decide


def main(settings: Settings) -> None:
    decide = decider(settings.models)
    rounds_us = []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        for _ in range(NUM_DECISIONS):
            decide()
        rounds_us.append((time.process_time() - started) / NUM_DECISIONS * 1e6)
    figures = {"decision_us": float(np.median(rounds_us)), "fastest_us": min(rounds_us), "slowest_us": max(rounds_us)}
    print(json.dumps({"num_models": len(settings.models), **{name: round(x, 1) for name, x in figures.items()}}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
