"""MINT: real multi-turn tasks under strict budgets, by cross-validation over tasks.

In each outer fold everything is fitted, trained and chosen on the other folds' tasks; every task is judged once, by
what had not seen it. Tasks that are also questions of pool2024's tune or test part are judged, never fitted on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.attempt_estimates import AttemptEstimates, estimate_attempts, task_folds
from seqroute_ray.core.attempt_mdp import AttemptQPolicy, relabel_attempts
from seqroute_ray.core.attempts import AttemptPolicy, Attempts, replay_attempts
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.data.mint import MINT_POOL, held_out_twins, load_mint
from seqroute_ray.evaluation.attempt_policies import (
    Cascade,
    ChancePerDollar,
    DearestThatFits,
    LargeWhereHard,
    PricedChance,
    RandomAttempts,
    cascades,
    oracle_solves,
)
from seqroute_ray.evaluation.families import hull_models
from seqroute_ray.evaluation.metrics import interval
from seqroute_ray.training.attempts import AttemptData, train_attempts
from seqroute_ray.training.config import CqlConfig

BUDGETS_USD = (0.0005, 0.003, 0.01, 0.06, 0.2)  # a task
BUDGET_RANGE = (0.4, 3.0)  # of training: from this share of the lowest to this multiple of the highest budget
LAMBDAS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)  # success per reference cost
PRICES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # success per reference cost
SLACKS = (0.25, 0.5, 0.7, 1.0, 1.5, 2.0)
THRESHOLDS = (-1.0, 0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
MAX_CASCADE_POOL = 4  # models of a cascade are taken from the hull of the pool, thinned to this many
TIE_BREAK = 1e-3  # of the success a whole budget is worth: settings of equal success are ranked by their cost
CQL, ORACLE = "cql", "oracle"

Report = dict[str, Any]
Families = Mapping[str, Sequence[AttemptPolicy]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MintConfig:
    """One cross-validated comparison."""

    models: tuple[str, ...] = MINT_POOL
    budgets_usd: tuple[float, ...] = BUDGETS_USD
    num_folds: int = 5
    num_seeds: int = 5  # of relabeling and training
    num_replays: int = 120  # of each task in training
    num_replicates: int = 500  # bootstrap draws of tasks
    cql: CqlConfig = field(
        default_factory=lambda: CqlConfig(cql_alpha=0.001, history_noise=0.0, batch_size=512, num_steps=1500)
    )

    def __post_init__(self) -> None:
        if not self.budgets_usd or min(self.budgets_usd) <= 0:
            raise ConfigError(f"budgets_usd must be > 0, got {self.budgets_usd}")
        if self.num_folds < 2 or self.num_seeds < 1:
            raise ConfigError(f"needs num_folds >= 2 and num_seeds >= 1, got {self.num_folds} and {self.num_seeds}")


@dataclass(frozen=True)
class Judged:
    """One policy on all tasks, by budget: [budgets, N]; means over seeds where it has several."""

    success: FloatArray
    cost_usd: FloatArray
    bankrupt: FloatArray

    @classmethod
    def empty(cls, num_budgets: int, num_tasks: int) -> "Judged":
        return cls(*(np.zeros((num_budgets, num_tasks)) for _ in range(3)))


def run_mint(config: MintConfig, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Report:
    """Train, choose, judge. Ray must be initialised."""
    attempts, twins = load_mint(config.models), held_out_twins()
    fold = task_folds(attempts, config.num_folds)
    fixed = {name: _replay_all(settings, attempts, config) for name, settings in _fixed_families(attempts).items()}
    judged: dict[str, Judged] = {}
    for held_out in range(config.num_folds):
        fit = (fold != held_out) & ~twins
        estimates = estimate_attempts(attempts, fit)
        families = _estimate_families(attempts, estimates, fit)
        tables = fixed | {name: _replay_all(settings, attempts, config) for name, settings in families.items()}
        for name, table in tables.items():
            _judge(judged, name, _chosen(table, fit, config), fold == held_out, 1.0)
        for seed in range(config.num_seeds):
            settings = _learned(attempts, estimates, fit, config, seed)
            chosen = _chosen(_replay_all(settings, attempts, config), fit, config)
            _judge(judged, CQL, chosen, fold == held_out, 1 / config.num_seeds)
            progress(held_out * config.num_seeds + seed + 1, config.num_folds * config.num_seeds)
    judged[ORACLE] = _oracle(attempts, config)
    return _report(judged, attempts, config)


def _reference_usd(attempts: Attempts, fit: BoolArray) -> float:
    """Mean cost of an attempt of the dearest model."""
    return float(_mean_usd(attempts, fit).max())


def _mean_usd(attempts: Attempts, fit: BoolArray) -> FloatArray:
    return np.asarray(to_usd(attempts.cost_nusd[fit]).sum(axis=2).mean(axis=0))


def _fixed_families(attempts: Attempts) -> Families:
    """Policies that nothing is fitted for but the choice of a setting."""
    whole = attempts.cost_nusd.shape[2]
    num_models = len(attempts.catalog)
    hull = _hull(attempts)
    few = num_models > MAX_CASCADE_POOL
    return {
        **{f"only {name}": [Cascade((k,), (whole,))] for k, name in enumerate(attempts.catalog.names) if k in hull},
        "random": [RandomAttempts()],
        "cascade": cascades(hull, (2, 3, whole) if few else tuple(range(1, whole + 1))),
    }


def _hull(attempts: Attempts) -> list[int]:
    """Models on the hull of (cost, success), cheapest first; thinned to MAX_CASCADE_POOL."""
    every = np.ones(len(attempts), dtype=np.bool_)
    models = hull_models(_mean_usd(attempts, every), attempts.success.mean(axis=0))
    places = np.linspace(0, len(models) - 1, min(len(models), MAX_CASCADE_POOL)).round().astype(int)
    return [models[place] for place in dict.fromkeys(places.tolist())]


def _estimate_families(attempts: Attempts, estimates: AttemptEstimates, fit: BoolArray) -> Families:
    """Baselines that see the same estimates as the learned policy, or the fit tasks' means."""
    mean_usd, reference_usd = _mean_usd(attempts, fit), _reference_usd(attempts, fit)
    small, large = int(mean_usd.argmin()), int(attempts.success[fit].mean(axis=0).argmax())
    return {
        "budget heuristic": [DearestThatFits(mean_usd, slack) for slack in SLACKS],
        "greedy on estimates": [PricedChance(estimates, 0.0)],
        "myopic": [PricedChance(estimates, price / reference_usd) for price in PRICES],
        "chance per dollar": [ChancePerDollar(estimates)],
        "first large": [LargeWhereHard(estimates, small, large, -1.0)],
        "boundary-guided": [LargeWhereHard(estimates, small, large, threshold) for threshold in THRESHOLDS],
    }


def _learned(
    attempts: Attempts, estimates: AttemptEstimates, fit: BoolArray, config: MintConfig, seed: int
) -> list[AttemptPolicy]:
    """The learned policy over its lambdas."""
    low, high = min(config.budgets_usd) * BUDGET_RANGE[0], max(config.budgets_usd) * BUDGET_RANGE[1]
    tasks = np.flatnonzero(fit)
    transitions = relabel_attempts(attempts, estimates, tasks, (low, high), config.num_replays, seed)
    reference_usd = _reference_usd(attempts, fit)
    network = train_attempts(AttemptData(estimates, transitions, reference_usd), replace(config.cql, seed=seed))
    return [AttemptQPolicy(network, estimates, reference_usd, value / reference_usd) for value in LAMBDAS]


def _replay_all(settings: Sequence[AttemptPolicy], attempts: Attempts, config: MintConfig) -> list[Judged]:
    """Every setting on all tasks."""
    tasks: IntArray = np.arange(len(attempts))
    budgets = to_nusd(np.array(config.budgets_usd)).tolist()
    table = []
    for policy in settings:
        results = [replay_attempts(policy, attempts, tasks, budget) for budget in budgets]
        columns = zip(*((r.solved, to_usd(r.cost_nusd), r.bankrupt) for r in results), strict=True)
        table.append(Judged(*(np.stack(values).astype(np.float64) for values in columns)))
    return table


def _chosen(table: list[Judged], fit: BoolArray, config: MintConfig) -> Judged:
    """At each budget the setting of the most success on the fit tasks; of the same success, the cheapest."""
    rows = []
    for b, budget_usd in enumerate(config.budgets_usd):
        worth = [one.success[b, fit].mean() - TIE_BREAK * one.cost_usd[b, fit].mean() / budget_usd for one in table]
        best = table[int(np.argmax(worth))]
        rows.append((best.success[b], best.cost_usd[b], best.bankrupt[b]))
    return Judged(*(np.stack(values) for values in zip(*rows, strict=True)))


def _judge(judged: dict[str, Judged], name: str, chosen: Judged, held_out: BoolArray, share: float) -> None:
    """Add what the chosen setting did on the held-out tasks."""
    total = judged.setdefault(name, Judged.empty(*chosen.success.shape))
    for column, values in vars(chosen).items():
        getattr(total, column)[:, held_out] += share * values[:, held_out]


def _oracle(attempts: Attempts, config: MintConfig) -> Judged:
    columns = [oracle_solves(attempts, int(budget)) for budget in to_nusd(np.array(config.budgets_usd))]
    solved, cost = (np.stack(values) for values in zip(*columns, strict=True))
    return Judged(solved.astype(np.float64), to_usd(cost), np.zeros(solved.shape))


def _report(judged: Mapping[str, Judged], attempts: Attempts, config: MintConfig) -> Report:
    rng = np.random.default_rng(0)
    num_tasks = len(attempts)
    draws = rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size=config.num_replicates) / num_tasks
    test, ours = attempts.part == "test", judged[CQL].success
    rows, compared = [], []
    for name, one in judged.items():
        for b, budget_usd in enumerate(config.budgets_usd):
            rows.append(
                {
                    "policy": name,
                    "budget_usd": budget_usd,
                    "success": float(one.success[b].mean()),
                    "success_ci": interval(draws @ one.success[b]),
                    "success_on_test_part": float(one.success[b, test].mean()),
                    "cost_usd": float(one.cost_usd[b].mean()),
                    "bankruptcy_rate": float(one.bankrupt[b].mean()),
                }
            )
        if name != CQL:
            differences = [*(ours - one.success), (ours - one.success).mean(axis=0)]
            for budget, values in zip([*config.budgets_usd, "mean"], differences, strict=True):
                low, high = interval(draws @ values)
                compared.append(
                    {"baseline": name, "budget": budget, "difference": values.mean(), "low": low, "high": high}
                )
    return {"rows": rows, "comparisons": compared, "num_tasks": num_tasks, "models": list(config.models)}
