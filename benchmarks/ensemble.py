"""Is the mean of several networks a better policy than one? Ensembles of each size, judged on the tune part.

    python benchmarks/ensemble.py [--models MODEL ...] [--sizes 1 3 5] [--num-seeds 3] [--out runs/ensemble]

Sessions are quickstart's, and so are the settings of training; a seed draws the relabeling, the networks and the order
of rows. The figure is that of `seqroute train --tune-sessions`: AIQ of the last policy over six budgets at lambda 0.
Differences to one network are paired: by seed, with a 95 % t interval, and by question, with the bootstrap of the
reports, whose ends are means over seeds. Goes on where it was, also with more seeds. Ends with one JSON line.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _processes import machine
from narrow_logs import T_975

from seqroute_ray import stages
from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from seqroute_ray.data.sample import DEFAULT_POOL, Part
from seqroute_ray.evaluation.aiq import aiq
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.config import BUDGETS
from seqroute_ray.evaluation.metrics import interval, measure, question_replicates
from seqroute_ray.evaluation.replay import ReplayData, replay
from seqroute_ray.progress import console
from seqroute_ray.quickstart import Folders, QuickstartConfig, sample_and_import
from seqroute_ray.ray_session import ray_session
from seqroute_ray.training.config import CqlConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    models: tuple[str, ...] = DEFAULT_POOL
    sizes: tuple[int, ...] = (1, 3, 5)  # the first is what the others are compared with
    num_seeds: int = 3
    num_steps: int = CqlConfig().num_steps
    out: Path = Path("runs/ensemble")  # of one pool
    num_replicates: int = 500


@dataclass(frozen=True)
class Judged:
    """One policy on the tune part."""

    aiq: float
    aiq_replicates: FloatArray  # [R]
    quality: FloatArray  # [B] by budget
    bankruptcy_rate: FloatArray  # [B]


def judge(settings: Settings, folders: Folders, policy: Path) -> Judged:
    artefact = PolicyArtefact.load(policy)
    sessions = read_sessions(folders.sessions("tune")).of_part("tune")
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    replicates = question_replicates(sessions, settings.num_replicates, seed=0)
    acting, reference_usd = QPolicy(artefact.network, artefact.risk), artefact.layout.reference_cost_usd
    measured = [
        measure(
            replay(acting, data, np.full(sessions.num_sessions, to_nusd(budget * reference_usd))), sessions, replicates
        )
        for budget in BUDGETS
    ]
    single_usd = to_usd(sessions.outcome_cost_nusd).mean(axis=0)

    def frontier(cost: Sequence[float] | FloatArray, quality: Sequence[float] | FloatArray) -> float:
        return aiq(np.array(cost), np.array(quality), single_usd.min(), single_usd.max(), log_cost=False)

    draws = zip(*(zip(one.cost_replicates, one.quality_replicates, strict=True) for one in measured), strict=True)
    return Judged(
        aiq=frontier([one.cost_usd_per_turn for one in measured], [one.quality for one in measured]),
        aiq_replicates=np.array([frontier(*zip(*draw, strict=True)) for draw in draws]),
        quality=np.array([one.quality for one in measured]),
        bankruptcy_rate=np.array([one.bankruptcy_rate for one in measured]),
    )


def run_seed(settings: Settings, shared: Folders, seed: int) -> list[Judged]:
    """By size of the ensemble."""
    folders = Folders(settings.out / f"seed-{seed}", parent=shared)
    hbr = HbrConfig(paths="sampled", seed=seed)
    relabel_sessions(RelabelConfig(sessions=shared.sessions("fit"), out=folders.dataset, hbr=hbr, runner="local"))
    judged = []
    for size in settings.sizes:
        console.print(f"seed {seed}: train {size}")
        policy, cql = folders.out / f"policy-{size}", CqlConfig(num_steps=settings.num_steps, seed=seed)
        stages.train(TrainConfig(dataset=folders.dataset, out=policy, cql=replace(cql, ensemble_size=size)))
        judged.append(judge(settings, shared, policy))
    return judged


def row(settings: Settings, by_seed: list[list[Judged]], place: int) -> dict[str, Any]:
    ours, single = ([judged[i] for judged in by_seed] for i in (place, 0))
    pairs = list(zip(ours, single, strict=True))
    difference = np.array([one.aiq - other.aiq for one, other in pairs])
    of_questions = [interval(one.aiq_replicates - other.aiq_replicates) for one, other in pairs]
    figures = {
        "aiq": [one.aiq for one in ours],
        "aiq_difference": difference.mean(),
        **({"interval_of_seeds": t_interval(difference)} if len(pairs) > 1 else {}),
        "interval_of_questions": np.mean(of_questions, axis=0),
        "quality": np.mean([one.quality for one in ours], axis=0),
        "quality_difference": np.mean([one.quality - other.quality for one, other in pairs], axis=0),
        "bankruptcy_rate": np.mean([one.bankruptcy_rate for one in ours], axis=0),
    }
    return {"size": settings.sizes[place], **{name: np.round(value, 5).tolist() for name, value in figures.items()}}


def t_interval(values: FloatArray) -> FloatArray:
    """95 %, of the mean over seeds."""
    half = T_975[len(values)] * values.std(ddof=1) / np.sqrt(len(values))
    return np.asarray(values.mean() + np.array([-half, half]))


def main(settings: Settings) -> None:
    shared = Folders(settings.out)
    config = QuickstartConfig(out=settings.out, models=settings.models)
    parts: tuple[tuple[Part, int], ...] = (("fit", 10_000), ("tune", 2_000))
    for seed, (part, num_sessions) in enumerate(parts):
        if not shared.sessions(part).exists():
            sample_and_import(config, shared, part, num_sessions, seed)
    with ray_session():
        by_seed = [run_seed(settings, shared, seed) for seed in range(settings.num_seeds)]
    rows = [row(settings, by_seed, place) for place in range(len(settings.sizes))]
    about = {"models": settings.models, "budgets": BUDGETS, "machine": machine()}
    fingerprint = read_header(settings.out / "seed-0" / "dataset").manifest["data_fingerprint"]
    print(json.dumps({"rows": rows, **about, "data_fingerprint": fingerprint}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
