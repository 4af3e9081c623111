"""CPU time of one routing decision, and decisions a second in batches, on one core.

    python benchmarks/decision.py [--seed 0] [--ensemble-size 1]

A decision is features, estimates, state, both heads, mask and choice; the embedding is given. One turn at a time it is
made by core/compiled_policy.py, as serving does; in batches by the batch path; `batch_path_us` is the batch path on one
turn. Networks have the default size and random weights: the time does not depend on them. Half of the turns name their
type of task. Ends with one JSON line: `policy_us` (median), `policy_p99_us`, `policy_states_per_s` by size of the pool.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: one core is what is measured

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import tyro
from _processes import machine
from numpy.typing import NDArray

from seqroute_ray.core import mdp, policy
from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.compiled_policy import CompiledPolicy, Turn, affordable, lambda_greedy
from seqroute_ray.core.fitting import EstimatorConfig, Observations, fit_estimator
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, encode_state
from seqroute_ray.core.policy import Perceptron, PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.queries import UNKNOWN_TYPE, Queries
from seqroute_ray.core.risk import RiskTable
from seqroute_ray.core.risk_plan import MAX_MONEY, MIN_MONEY, NUM_MONEY_STEPS
from seqroute_ray.data.bundled import Outcomes, load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL, FINDINGS_POOL
from seqroute_ray.training.config import CqlConfig

REFERENCE_COST_USD, MAX_TURNS = 0.03, 12
PENALTY, LAMBDA_PER_USD = 2.0, 0.0
NUM_TURNS = 2048  # those decided one by one, and the size of a batch
NUM_ROUNDS, NUM_BATCHES = 15, 10  # batches a round
NUM_MODELS = 11  # of the widest pool: the first of the bundled ones


@dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int = 0
    ensemble_size: int = 1  # as CqlConfig's: an artefact's network is that many times as wide


@dataclass(frozen=True)
class Asked:
    """Random turns."""

    queries: Queries
    earlier_summary: NDArray[np.float32]  # [N, R + 1] sum over the session's earlier turns
    remaining_usd: FloatArray  # [N]
    number: IntArray  # [N] of the turn in its session

    def turn(self, row: int) -> Turn:
        return Turn(
            embedding=self.queries.embedding[row],
            task_type=str(self.queries.task_type[row]),
            prompt_tokens=int(self.queries.prompt_tokens[row]),
            remaining_usd=float(self.remaining_usd[row]),
            num_earlier=int(self.number[row]),
            earlier_summary=self.earlier_summary[row].tolist(),
        )

    def take(self, rows: slice) -> "Asked":
        queries = Queries(*(values[rows] for values in vars(self.queries).values()))
        return Asked(queries, self.earlier_summary[rows], self.remaining_usd[rows], self.number[rows])


def perceptron(rng: np.random.Generator, widths: list[int]) -> Perceptron:
    shapes = pairwise(widths)
    return Perceptron([(rng.normal(size=s).astype(np.float32), np.zeros(s[1], dtype=np.float32)) for s in shapes])


def queries_of(outcomes: Outcomes) -> Queries:
    return Queries(outcomes.embedding.astype(np.float32), outcomes.source, outcomes.prompt_tokens[:, 0])


def make_policy(outcomes: Outcomes, rng: np.random.Generator, ensemble_size: int) -> PolicyArtefact:
    """A fitted estimator with random chances of bankruptcy, and a random network."""
    log_tokens = np.log(np.maximum(outcomes.completion_tokens, 1))
    seen = Observations(queries_of(outcomes), outcomes.quality.astype(np.float64), log_tokens, outcomes.query_id)
    estimator, cql = fit_estimator(seen, EstimatorConfig(), outcomes.catalog.names), CqlConfig()
    layout = StateLayout(
        num_models=len(outcomes.catalog),
        summary_width=estimator.features.summary_width,
        reference_cost_usd=REFERENCE_COST_USD,
        expected_turns_left=tuple(float(x) for x in range(MAX_TURNS, 0, -1)),
    )
    hidden, risk_hidden = ([ensemble_size * width for width in widths] for widths in (cql.hidden, cql.risk_hidden))
    network = QNetwork(
        perceptron(rng, [layout.num_context + NUM_AFTER - NUM_RISK, *hidden, 1]),
        perceptron(rng, [layout.num_context + NUM_AFTER, *risk_hidden, 1]),
        layout.num_context,
    )
    num_types, num_models = estimator.features.num_types, len(outcomes.catalog)
    risk = RiskTable(
        chance=rng.random((MAX_TURNS, num_types, num_models, NUM_MONEY_STEPS), dtype=np.float32),
        money_usd=np.geomspace(MIN_MONEY, MAX_MONEY, NUM_MONEY_STEPS) * REFERENCE_COST_USD,
        mean_cost_usd=rng.random((num_types, num_models)) * REFERENCE_COST_USD / MAX_TURNS,
    )
    return PolicyArtefact(
        catalog=outcomes.catalog,
        embedder="wordllama",
        layout=layout,
        estimator=replace(estimator, risk=risk),
        network=network,
        risk=RiskPrices((1.0,), (PENALTY,)),
    )


def ask(artefact: PolicyArtefact, outcomes: Outcomes, rng: np.random.Generator) -> Asked:
    queries = queries_of(outcomes).take(rng.integers(len(outcomes.quality), size=NUM_TURNS))
    named = np.where(rng.random(NUM_TURNS) < 0.5, queries.task_type, UNKNOWN_TYPE)
    queries = Queries(queries.embedding, named, queries.prompt_tokens)
    number = rng.integers(MAX_TURNS, size=NUM_TURNS)
    return Asked(
        queries,
        artefact.estimator.features.summary(queries) * number[:, None].astype(np.float32),
        rng.uniform(0, REFERENCE_COST_USD, size=NUM_TURNS),
        number,
    )


def decide_batch(artefact: PolicyArtefact, asked: Asked) -> IntArray:
    """[N] actions."""
    summary = artefact.estimator.features.summary(asked.queries)
    estimates = artefact.estimator.predict_from(summary, asked.queries, artefact.catalog)
    history = (asked.earlier_summary + summary) / (asked.number + 1).astype(np.float32)[:, None]
    state = encode_state(artefact.layout, TurnFeatures(estimates, history), asked.remaining_usd, asked.number)
    allowed = mdp.affordable(estimates.cost_usd, estimates.cost_high_usd, asked.remaining_usd)
    values = artefact.network.values(state)
    if artefact.estimator.risk is not None:
        planned = artefact.estimator.risk.at(summary[:, :-1], asked.number, asked.remaining_usd, estimates.cost_usd)
        values = replace(values, bankruptcy=planned)
    q_values = values.q_values(PENALTY)
    return policy.lambda_greedy(q_values, estimates.cost_usd, allowed, LAMBDA_PER_USD)


def decide(compiled: CompiledPolicy, turn: Turn) -> int:
    outlook = compiled.outlook(turn)
    allowed = affordable(outlook.cost_usd, outlook.cost_high_usd, turn.remaining_usd)
    return lambda_greedy(outlook.q_values(PENALTY), outlook.cost_usd, allowed, LAMBDA_PER_USD)


def cpu_us(work: Callable[..., Any], *arguments: Any) -> float:
    started = time.process_time_ns()
    work(*arguments)
    return (time.process_time_ns() - started) / 1e3


def measure(models: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    """One pool; batches, single turns and the batch path on single turns take their turns."""
    outcomes, rng = load_outcomes().select(models), np.random.default_rng(settings.seed)
    artefact = make_policy(outcomes, rng, settings.ensemble_size)
    asked, compiled = ask(artefact, outcomes, rng), CompiledPolicy(artefact)
    turns, single = [asked.turn(row) for row in range(NUM_TURNS)], [asked.take(slice(i, i + 1)) for i in range(100)]
    actions = [decide(compiled, turn) for turn in turns]
    same = float(np.mean(decide_batch(artefact, asked) == actions))
    batch_us, one_us, path_us = [], [], []
    for _ in range(NUM_ROUNDS):
        batch_us += [cpu_us(decide_batch, artefact, asked) / NUM_TURNS for _ in range(NUM_BATCHES)]
        one_us += [cpu_us(decide, compiled, turn) for turn in turns]
        path_us += [cpu_us(decide_batch, artefact, one) for one in single]
    return {
        "num_models": len(models),
        "policy_us": round(float(np.median(one_us)), 1),
        "policy_p99_us": round(float(np.quantile(one_us, 0.99)), 1),
        "batch_path_us": round(float(np.median(path_us)), 1),
        "policy_states_per_s": round(1e6 / float(np.median(batch_us))),
        "policy_states_per_s_range": [round(1e6 / float(np.quantile(batch_us, q))) for q in (0.95, 0.05)],
        "same_actions": same,
    }


def main(settings: Settings) -> None:
    widest = load_outcomes().catalog.names[:NUM_MODELS]
    pools = [measure(models, settings) for models in (DEFAULT_POOL, FINDINGS_POOL, widest)]
    figures = {name: [pool[name] for pool in pools] for name in pools[0]}
    print(json.dumps({**figures, "batch_size": NUM_TURNS, **asdict(settings), "machine": machine()}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
