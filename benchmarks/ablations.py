"""What each part of the recipe is worth: the learned policy without it, on the test part.

    python benchmarks/ablations.py [--models MODEL ...] [--num-seeds 2] [--out runs/ablations]

Each variant is trained on the fit part; at each budget its price of a bankruptcy is the one of the most quality on the
tune part. Paired differences to the whole recipe resample questions; means over seeds. Ends with one JSON line.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from seqroute_ray import stages
from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.dataset import Dataset, read_dataset
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.mdp import NUM_AFTER, NUM_MONEY, StateLayout, TurnFeatures, affordable, encode_state
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.data.sample import DEFAULT_POOL
from seqroute_ray.evaluation.metrics import Measured, Replicates, interval, measure, question_replicates
from seqroute_ray.evaluation.replay import ReplayData, Turns, replay
from seqroute_ray.progress import console
from seqroute_ray.quickstart import Folders, QuickstartConfig, sample_and_import
from seqroute_ray.ray_session import ray_session
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.cql import Heads
from seqroute_ray.training.reader import Batch
from seqroute_ray.training.relabeled import RelabeledData
from seqroute_ray.training.train import train_network

RISKS = (0.5, 2.0, 5.0, 20.0)  # prices of a bankruptcy, in turns of full quality
ONE_BUDGET = 0.35  # of the reference cost: the only one, without hindsight relabeling
MONEY_CONTEXT = 4  # the first entries of a context

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    models: tuple[str, ...] = DEFAULT_POOL
    out: Path = Path("runs/ablations")
    num_seeds: int = 2
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
    num_replicates: int = 500


@dataclass(frozen=True)
class Variant(RelabeledData):
    """Transitions whose states lack some entries, or are the raw embedding with the money."""

    blank: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # entries of a state that are 0
    embedding: NDArray[np.float32] | None = None  # [N, D] of the turns

    @property
    def state_dim(self) -> int:
        return self.layout.state_dim if self.embedding is None else NUM_MONEY + self.embedding.shape[1]

    @property
    def network(self) -> dict[str, int]:
        return super().network if self.embedding is None else {}

    def batch(self, rows: IntArray) -> Batch:
        batch = super().batch(rows)
        t = self.transitions.take(rows)
        following = np.where(t.terminated, t.turn_row, t.turn_row + 1)
        for name, turns in ((Columns.OBS, t.turn_row), (Columns.NEXT_OBS, following)):
            vectors = None if self.embedding is None else self.embedding[turns]
            batch[name] = altered(batch[name], self.blank, vectors)
        return batch


def altered(state: NDArray[np.float32], blank: IntArray, embedding: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """[N, state_dim] without some entries; or money and embedding alone."""
    if embedding is not None:
        return np.concatenate([state[:, :NUM_MONEY], embedding], axis=1, dtype=np.float32)
    state[:, blank] = 0
    return state


@dataclass(frozen=True)
class VariantPolicy:
    """The trained network of a variant, in torch, at one price of a bankruptcy."""

    network: torch.nn.Module
    blank: IntArray
    raw: bool
    risk: float

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        """By the network's own heads: the plan of bankruptcies is not what is taken away here."""
        features = data.features.take(turns.row)
        state = encode_state(data.layout, features, turns.remaining_usd, np.full(len(turns.row), turns.turn))
        state = altered(state, self.blank, data.sessions.embedding[turns.row] if self.raw else None)
        with torch.no_grad():
            q_values = Heads.of(self.network(torch.from_numpy(state))).q_values(self.risk).numpy()
        estimates = features.estimates
        allowed = affordable(estimates.cost_usd, estimates.cost_high_usd, turns.remaining_usd)
        return np.asarray(np.argmax(np.where(allowed, q_values, -np.inf), axis=1))


def money_entries(layout: StateLayout) -> IntArray:
    """Entries of a state that tell of the budget: of the context, and of what each model would leave."""
    first = layout.num_context + layout.num_models
    after = np.arange(layout.num_models * NUM_AFTER) + first
    return np.concatenate([np.arange(MONEY_CONTEXT), after[after % NUM_AFTER != first % NUM_AFTER]])


def not_cross_fitted(dataset: Dataset, sessions: Sessions) -> Dataset:
    """The same transitions with estimates by an estimator that saw the turns' own outcomes."""
    estimates = dataset.estimator.predict(sessions.queries, sessions.catalog)
    return replace(dataset, turns=TurnFeatures(estimates, dataset.turns.history))


def variants(folder: Path, one_budget: Path, sessions: Sessions) -> dict[str, tuple[Variant, CqlConfig]]:
    """By name: what to train on, and how."""
    dataset, cql = read_dataset(folder), CqlConfig()
    whole, layout = RelabeledData.of(dataset), dataset.layout
    embedding = sessions.embedding.astype(np.float32)
    history = np.arange(NUM_MONEY, layout.num_context)

    def variant(data: RelabeledData, **fields: Any) -> Variant:
        return Variant(data.layout, data.turns, data.transitions, **fields)

    return {
        "the whole recipe": (variant(whole), cql),
        "without hindsight: one budget": (variant(RelabeledData.of(read_dataset(one_budget))), cql),
        "without the budget in the state": (variant(whole, blank=money_entries(layout)), cql),
        "without the conservative term": (variant(whole), replace(cql, cql_alpha=0.0)),
        "without cross-fitting": (variant(RelabeledData.of(not_cross_fitted(dataset, sessions))), cql),
        "raw embedding as state": (variant(whole, embedding=embedding), replace(cql, history_noise=0.0)),
        "without history": (variant(whole, blank=history), cql),
    }


@dataclass(frozen=True)
class Part:
    data: ReplayData
    replicates: Replicates

    def measure(self, policy: VariantPolicy, budget: float) -> Measured:
        sessions = self.data.sessions
        budget_nusd = np.full(sessions.num_sessions, to_nusd(budget * self.data.layout.reference_cost_usd))
        return measure(replay(policy, self.data, budget_nusd), sessions, self.replicates)


def figures(settings: Settings, policy: Callable[[float], VariantPolicy], tune: Part, test: Part) -> list[Measured]:
    """On the test part by budget, at the price of a bankruptcy of the most quality on the tune part."""
    chosen = []
    for budget in settings.budgets:
        qualities: FloatArray = np.array([tune.measure(policy(risk), budget).quality for risk in RISKS])
        chosen.append(test.measure(policy(RISKS[int(qualities.argmax())]), budget))
    return chosen


def run_seed(settings: Settings, shared: Folders, seed: int) -> dict[str, list[Measured]]:
    folders = Folders(settings.out / f"seed-{seed}", parent=shared)
    hbr = HbrConfig(paths="sampled", seed=seed)
    stages.relabel(RelabelConfig(sessions=shared.sessions("fit"), out=folders.dataset, hbr=hbr))
    dataset = read_dataset(folders.dataset)
    one = replace(hbr, budgets_usd=(ONE_BUDGET * dataset.layout.reference_cost_usd,))
    one_budget = folders.out / "dataset-one-budget"
    stages.relabel(RelabelConfig(sessions=shared.sessions("fit"), out=one_budget, hbr=one))

    def part(name: str) -> Part:
        sessions = read_sessions(shared.sessions(name)).of_part(name)  # type: ignore[arg-type]
        data = ReplayData.prepare(sessions, dataset.estimator, dataset.layout)
        return Part(data, question_replicates(sessions, settings.num_replicates, seed=0))

    tune, test = part("tune"), part("test")
    results = {}
    for name, (source, cql) in variants(folders.dataset, one_budget, read_sessions(shared.sessions("fit"))).items():
        console.print(f"seed {seed}: train {name}")
        network = train_network(source, replace(cql, seed=seed), dataset.bankruptcy_penalty, lambda *_: None)
        raw, blank = source.embedding is not None, source.blank
        make: Callable[[float], VariantPolicy] = lambda risk: VariantPolicy(network, blank, raw, risk)  # noqa: B023, E731
        results[name] = figures(settings, make, tune, test)
    return results


def rows(settings: Settings, by_seed: list[dict[str, list[Measured]]]) -> Rows:
    """One row a (variant, budget); figures and interval ends are means over seeds."""
    table = []
    for name in by_seed[0]:
        for b, budget in enumerate(settings.budgets):
            ours = [seed[name][b] for seed in by_seed]
            whole = [seed["the whole recipe"][b] for seed in by_seed]
            intervals = [
                interval(o.quality_replicates - w.quality_replicates) for o, w in zip(ours, whole, strict=True)
            ]
            row = {
                "quality": np.mean([one.quality for one in ours]),
                "bankruptcy_rate": np.mean([one.bankruptcy_rate for one in ours]),
                "cost_usd_per_turn": np.mean([one.cost_usd_per_turn for one in ours]),
                "difference": np.mean([o.quality - w.quality for o, w in zip(ours, whole, strict=True)]),
                "low": np.mean([low for low, _ in intervals]),
                "high": np.mean([high for _, high in intervals]),
            }
            table.append({"variant": name, "budget": budget, **{key: round(float(x), 6) for key, x in row.items()}})
    return table


def main(settings: Settings) -> None:
    if settings.out.exists():
        raise SystemExit(f"{settings.out} exists; delete it or choose another --out")
    started, shared = time.monotonic(), Folders(settings.out)
    config = QuickstartConfig(out=settings.out, models=settings.models)
    for seed, (name, num_sessions) in enumerate((("fit", 10_000), ("tune", 2_000), ("test", 2_000))):
        sample_and_import(config, shared, name, num_sessions, seed)  # type: ignore[arg-type]  # a literal, widened
    with ray_session():
        by_seed = [run_seed(settings, shared, seed) for seed in range(settings.num_seeds)]
    reference_usd = to_usd(read_sessions(shared.sessions("fit")).outcome_cost_nusd).mean(axis=0).max() * 8
    result = {
        "rows": rows(settings, by_seed),
        "models": list(settings.models),
        "reference_cost_usd": float(reference_usd),
    }
    print(json.dumps({**result, "wall_s": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
