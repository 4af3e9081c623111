"""The setting of the paper (SeqRoute, arXiv:2605.25424) on real outcomes: `seqroute quickstart --preset paper`.

Llama-3.1-8B and 70B, cost = tokens x {1, 10}, sessions of 4 turns, all 16 action paths under 5 budgets, a state of the
raw embedding and one budget scalar, a [512, 256, 256] network, gamma 0.99, penalty 5, the bankrupting turn credited.
Relabeled on Ray Data and trained on RLlib as everything else; nothing of it is what this project recommends. What
differs from the paper stands in docs/paper.md.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from rich.table import Table

from seqroute_ray import stages
from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.dataset import read_dataset
from seqroute_ray.core.hbr import HbrConfig, Transitions
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.data.sample import Part, SampleConfig, write_sample
from seqroute_ray.evaluation.baselines import BudgetHeuristic, FixedModel, RandomModel
from seqroute_ray.evaluation.replay import UNSERVED, Policy, ReplayData, Turns, replay
from seqroute_ray.progress import bar, console
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.cql import PlainNetwork
from seqroute_ray.training.reader import BANKRUPT, NEXT_ALLOWED, Batch
from seqroute_ray.training.train import train_network

MODELS = ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct")
SMALL, LARGE = 0, 1
NUM_TURNS, PENALTY = 4, 5.0
BUDGETS = (500.0, 1500.0, 3000.0, 5000.0, 8000.0)  # in the paper's units
SMALL_SESSION = 921.0  # in the paper's units: the cost of its policy that hardly ever takes the large model
MAIN_BUDGET = 5000.0  # of the paper's table
LAMBDA = 5e-4  # quality per paper unit
ALPHAS = (1.0, 0.1)  # the paper does not say which
HEURISTIC_MARGIN = 1.3  # the large model whenever this many of its mean cost fit
NOTHING = 1e-12  # a price of bankruptcy for a learner whose rewards hold the penalty already

Result = dict[str, Any]


@dataclass(frozen=True)
class PaperData:
    """Transitions with the paper's state: embedding of the query, remaining budget over the largest budget."""

    embedding: NDArray[np.float32]  # [N, D]
    outcome_quality: NDArray[np.float32]  # [N, 2]
    largest_budget_usd: float
    transitions: Transitions

    @property
    def state_dim(self) -> int:
        return int(self.embedding.shape[1]) + 1

    @property
    def num_actions(self) -> int:
        return len(MODELS)

    @property
    def network(self) -> dict[str, int]:
        return {}

    def __len__(self) -> int:
        return len(self.transitions)

    def batch(self, rows: IntArray) -> Batch:
        t = self.transitions.take(rows)
        following = np.where(t.terminated, t.turn_row, t.turn_row + 1)
        remaining_usd, left_usd = to_usd(t.remaining_nusd), to_usd(np.maximum(t.remaining_nusd - t.cost_nusd, 0))
        quality = self.outcome_quality[t.turn_row, t.action]
        return {
            Columns.OBS: paper_state(self.embedding[t.turn_row], remaining_usd, self.largest_budget_usd),
            Columns.NEXT_OBS: paper_state(self.embedding[following], left_usd, self.largest_budget_usd),
            NEXT_ALLOWED: np.ones((len(rows), len(MODELS)), dtype=np.bool_),
            Columns.ACTIONS: t.action.astype(np.int64),
            Columns.REWARDS: (quality - PENALTY * t.bankrupt).astype(np.float32),  # the bankrupting turn is credited
            BANKRUPT: np.zeros(len(rows), dtype=np.float32),  # one Q: the penalty is in the reward
            Columns.TERMINATEDS: t.terminated,
        }


def paper_state(
    embedding: NDArray[np.floating], remaining_usd: FloatArray, largest_budget_usd: float
) -> NDArray[np.float32]:
    """[N, D + 1]."""
    return np.concatenate([embedding, (remaining_usd / largest_budget_usd)[:, None]], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class PaperPolicy:
    """argmax Q - lambda * mean cost of the model; no mask."""

    network: PlainNetwork
    largest_budget_usd: float
    price: FloatArray  # [2] lambda x mean cost of a turn

    def q_values(self, data: ReplayData, turns: Turns) -> NDArray[np.float32]:
        state = paper_state(data.sessions.embedding[turns.row], turns.remaining_usd, self.largest_budget_usd)
        with torch.no_grad():
            return np.asarray(self.network(torch.from_numpy(state))[:, : len(MODELS)].numpy())

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return np.asarray(np.argmax(self.q_values(data, turns) - self.price, axis=1))


@dataclass(frozen=True)
class SampledCloning:
    """Behaviour cloning that samples from what it cloned, as a log of coin flips wants it."""

    cloned: PaperPolicy

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        logits = self.cloned.q_values(data, turns)
        chance = 1 / (1 + np.exp(logits[:, SMALL] - logits[:, LARGE]))
        return np.where(np.random.default_rng(turns.turn).random(len(chance)) < chance, LARGE, SMALL)


@dataclass(frozen=True)
class Heuristic:
    """The large model whenever a multiple of its mean cost fits into what remains."""

    limit_usd: float

    def act(self, data: ReplayData, turns: Turns) -> IntArray:  # noqa: ARG002
        return np.where(turns.remaining_usd >= self.limit_usd, LARGE, SMALL)


def run_paper(out: Path, num_sessions: int, num_steps: int, seed: int) -> Result:
    """Sample, relabel, train, evaluate; writes paper.json. Ray must be initialised."""
    started = time.monotonic()
    catalog = out / "catalog.json"
    prices = tuple(
        ModelSpec(name=m, usd_per_m_input=p, usd_per_m_output=p) for m, p in zip(MODELS, (1, 10), strict=True)
    )
    catalog.write_text(json.dumps(Catalog(prices).to_json()))
    fit, test = (_sessions(out, catalog, part, num_sessions, seed + i) for i, part in enumerate(("fit", "test")))  # type: ignore[arg-type]
    unit_usd = float(to_usd(fit.outcome_cost_nusd[:, SMALL]).mean()) * NUM_TURNS / SMALL_SESSION
    budgets_usd = tuple(budget * unit_usd for budget in BUDGETS)
    hbr = HbrConfig(paths="all", budgets_usd=budgets_usd, bankruptcy_penalty=PENALTY, seed=seed)
    relabeled = stages.relabel(RelabelConfig(sessions=out / "sessions-fit.parquet", out=out / "dataset", hbr=hbr))
    data = _paper_data(fit, out / "dataset", budgets_usd[-1])
    mean_cost_usd = to_usd(fit.outcome_cost_nusd).mean(axis=0)
    cql = CqlConfig(
        hidden=(512, 256, 256), gamma=0.99, history_noise=0.0, num_steps=num_steps, batch_size=1024, seed=seed
    )

    def learned(title: str, config: CqlConfig) -> PaperPolicy:
        with bar(f"{title}, steps") as update:
            ensemble = train_network(data, config, NOTHING, lambda done, total, _losses: update(done, total, ""))
        (network,) = ensemble.networks
        assert isinstance(network, PlainNetwork)  # noqa: S101 - PaperData has no parts
        return PaperPolicy(network, budgets_usd[-1], np.zeros(len(MODELS)))

    policies: dict[str, Policy] = {
        "always 8B": FixedModel(SMALL),
        "always 70B": FixedModel(LARGE),
        "random": RandomModel(seed),
        "large whenever it fits": Heuristic(HEURISTIC_MARGIN * float(mean_cost_usd[LARGE])),
        "budget heuristic": BudgetHeuristic(mean_cost_usd),
    }
    cloned = learned("behaviour cloning", replace(cql, td_weight=0.0, cql_alpha=1.0, num_steps=max(1, num_steps // 3)))
    policies["behaviour cloning, sampled"] = SampledCloning(cloned)
    for alpha in ALPHAS:
        policy = learned(f"CQL alpha {alpha:g}", replace(cql, cql_alpha=alpha))
        policies[f"CQL alpha {alpha:g}, lambda 0"] = policy
        policies[f"CQL alpha {alpha:g}, lambda {LAMBDA:g}"] = replace(policy, price=LAMBDA * mean_cost_usd / unit_usd)
    dataset = read_dataset(out / "dataset")
    replayed = ReplayData.prepare(test, dataset.estimator, dataset.layout)
    rows = [{"policy": name, **_figures(policy, replayed, unit_usd)} for name, policy in policies.items()]
    console.print(_table(rows))
    result = {
        **{name: relabeled[name] for name in ("num_sessions", "num_transitions", "runner", "num_workers")},
        "budgets_in_small_turns": [budget * NUM_TURNS / SMALL_SESSION for budget in BUDGETS],
        "rows": rows,
        "cql": asdict(cql),
        "wall_s": round(time.monotonic() - started, 1),
    }
    (out / "paper.json").write_text(json.dumps(result, indent=1) + "\n")
    return {**result, "report_json": str(out / "paper.json")}


def _sessions(out: Path, catalog: Path, part: Part, num_sessions: int, seed: int) -> Sessions:
    """Sessions of 4 turns with both models' outcomes at the paper's prices."""
    sample = SampleConfig(
        num_sessions=num_sessions,
        models=MODELS,
        part=part,
        min_turns=NUM_TURNS,
        max_turns=NUM_TURNS,
        catalog=catalog,
        with_outcomes=True,
        seed=seed,
    )
    logs, sessions = out / f"logs-{part}.parquet", out / f"sessions-{part}.parquet"
    write_sample(sample, logs)
    import_logs(ImportConfig(logs=(logs,), out=sessions, catalog=catalog, models=MODELS, runner="local"))
    return read_sessions(sessions)


def _paper_data(sessions: Sessions, folder: Path, largest_budget_usd: float) -> PaperData:
    embedding = sessions.embedding.astype(np.float32)
    return PaperData(embedding, sessions.outcome_quality, largest_budget_usd, read_dataset(folder).transitions)


def _figures(policy: Policy, data: ReplayData, unit_usd: float) -> Result:
    """At the main budget; the slope of P(large) over all budgets."""
    sessions = data.sessions
    results = {
        budget: replay(policy, data, np.full(sessions.num_sessions, to_nusd(budget * unit_usd))) for budget in BUDGETS
    }
    result = results[MAIN_BUDGET]
    rows = np.flatnonzero(result.bankrupting)
    credited = result.quality.sum() + sessions.outcome_quality[rows, result.action[rows]].sum()
    decided = [r.action != UNSERVED for r in results.values()]
    large = np.concatenate([r.action[d] == LARGE for r, d in zip(results.values(), decided, strict=True)])
    left = np.concatenate([r.remaining_nusd[d] for r, d in zip(results.values(), decided, strict=True)])
    share = to_usd(left) / (BUDGETS[-1] * unit_usd)
    mixed = 0 < large.mean() < 1
    return {
        "cost": float(to_usd(result.cost_nusd).sum() / sessions.num_sessions / unit_usd),
        "bankruptcy_rate": float(result.bankrupt.mean()),
        "quality_per_turn": float(credited / len(result.quality)),
        "large_share": float(np.mean(result.action[result.action != UNSERVED] == LARGE)),
        "slope_of_large": float(np.polyfit(share, large, 1)[0]) if mixed else 0.0,
    }


def _table(rows: list[Result]) -> Table:
    table = Table(title="The paper's setting on real outcomes, at its budget of 5000")
    for column in ("policy", "cost", "bankrupt", "quality a turn", "large model", "slope"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        table.add_row(
            row["policy"],
            f"{row['cost']:.0f}",
            f"{100 * row['bankruptcy_rate']:.1f} %",
            f"{row['quality_per_turn']:.3f}",
            f"{100 * row['large_share']:.1f} %",
            f"{row['slope_of_large']:+.2f}",
        )
    return table
