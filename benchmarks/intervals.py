"""Are the report's fast intervals honest? A brute-force bootstrap that replays every policy anew tells.

    python benchmarks/intervals.py [--run runs/quickstart] [--num-replicates 200]

Brute force: every question of the test part is replaced by a random one of its source, the same one in all sessions,
and all sessions are replayed. Ends with one JSON line: standard errors of both methods, by figure and budget.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.evaluation.baselines import FixedModel, QPolicy
from seqroute_ray.evaluation.metrics import measure, question_replicates
from seqroute_ray.evaluation.replay import ReplayData, replay

BUDGETS = (0.1, 0.35, 1.0)
FIGURES = ("quality", "bankruptcy", "difference")


@dataclass(frozen=True, kw_only=True)
class Settings:
    run: Path = Path("runs/quickstart")  # a finished `make quickstart`
    num_replicates: int = 200
    seed: int = 0


def redraw(sessions: Sessions, rng: np.random.Generator) -> Sessions:
    """The same sessions with every question replaced by a random one of its source."""
    _, first, question = np.unique(sessions.group_id, return_index=True, return_inverse=True)
    source = sessions.source[first]
    stand_in: IntArray = np.arange(len(first))
    for name in np.unique(source):
        members = np.flatnonzero(source == name)
        stand_in[members] = rng.choice(members, size=len(members))
    rows = first[stand_in[question]]
    columns = ("embedding", "group_id", "source", "outcome_quality", "outcome_cost_nusd")
    return replace(sessions, **{name: getattr(sessions, name)[rows] for name in columns})


def figures(sessions: Sessions, artefact: PolicyArtefact, budget: float) -> tuple[float, float, float]:
    """Quality and bankruptcies of the policy, and its quality less that of the second model alone."""
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    budget_nusd = np.full(sessions.num_sessions, to_nusd(budget * artefact.layout.reference_cost_usd))
    policy = replay(QPolicy(artefact.network, artefact.risk), data, budget_nusd)
    single = replay(FixedModel(1), data, budget_nusd)
    quality = float(policy.quality.mean())
    return quality, float(policy.bankrupt.mean()), quality - float(single.quality.mean())


def fast_errors(sessions: Sessions, artefact: PolicyArtefact, budget: float, seed: int) -> list[float]:
    """Standard errors from the weights that the report uses."""
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    budget_nusd = np.full(sessions.num_sessions, to_nusd(budget * artefact.layout.reference_cost_usd))
    weights = question_replicates(sessions, 1000, seed)
    result = replay(QPolicy(artefact.network, artefact.risk), data, budget_nusd)
    policy = measure(result, sessions, weights)
    single = measure(replay(FixedModel(1), data, budget_nusd), sessions, weights)
    bankrupt = weights.rate(result.bankrupting)
    difference = policy.quality_replicates - single.quality_replicates
    return [float(np.std(values)) for values in (policy.quality_replicates, bankrupt, difference)]


def main(settings: Settings) -> None:
    if not (settings.run / "policy").exists():
        raise ConfigError(f"{settings.run}: no finished quickstart; run `make quickstart` first")
    artefact = PolicyArtefact.load(settings.run / "policy")
    sessions = read_sessions(settings.run / "sessions-test.parquet")
    rng = np.random.default_rng(settings.seed)
    drawn = [redraw(sessions, rng) for _ in range(settings.num_replicates)]
    result = {}
    for budget in BUDGETS:
        brute = np.std([figures(one, artefact, budget) for one in drawn], axis=0)
        fast = fast_errors(sessions, artefact, budget, settings.seed)
        result[f"{budget:g}x"] = {
            name: {"fast": round(f, 5), "brute": round(float(b), 5), "ratio": round(f / float(b), 3)}
            for name, f, b in zip(FIGURES, fast, brute, strict=True)
        }
    print(json.dumps({"num_replicates": settings.num_replicates, "standard_errors": result}))


if __name__ == "__main__":
    main(tyro.cli(Settings))
