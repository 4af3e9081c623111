"""Hindsight budget relabeling on Ray Data: sessions in, a training dataset out.

The driver fits the outcome estimator and writes the turn table; Ray Data's workers each relabel one row group of
sessions at a time and write its shard. Shards are cut by session count, so no result depends on the number of workers.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import EstimatorConfig, cross_fitted, fit_estimator, observe
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.mdp import (
    StateLayout,
    TurnFeatures,
    expected_turns_left,
    reference_cost_usd,
    running_mean,
)
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import Sessions, read_sessions, write_sessions

logger = logging.getLogger(__name__)
FIT_SESSIONS = "sessions.parquet"  # in the dataset: the sessions it was made of
Progress = Callable[[int, int], None]  # (shards done, shards in all)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelConfig:
    """From a session file to a dataset. Each field is a flag of `seqroute relabel`."""

    sessions: Path  # session Parquet; its fit part is used, or all of it when it names no parts
    out: Path  # folder of the dataset; must not hold one yet
    hbr: HbrConfig = field(default_factory=HbrConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass(frozen=True)
class RelabelReport:
    """What was written."""

    num_sessions: int
    num_turns: int
    num_transitions: int
    num_bankrupt: int
    num_workers: int  # distinct Ray workers that relabeled at least one shard
    data_fingerprint: str
    out: str


def relabel_sessions(config: RelabelConfig, progress: Progress = lambda _done, _total: None) -> RelabelReport:
    """Make the dataset. Ray must be initialised. Raises DataError, ConfigError."""
    if (config.out / ds.MANIFEST).exists():
        raise DataError(f"{config.out}: holds a finished dataset already; choose another folder or delete it")
    sessions = read_sessions(config.sessions).of_part("fit")
    if config.hbr.paths != "logged" and not sessions.has_outcomes:
        raise DataError(
            f"{config.sessions}: paths={config.hbr.paths} needs every model's outcome of every turn; use paths=logged"
        )
    (config.out / ds.SHARDS).mkdir(parents=True, exist_ok=True)
    write_sessions(sessions, config.out / FIT_SESSIONS)
    layout = write_turn_table(sessions, config)
    shards = relabel_shards(config, layout.reference_cost_usd, progress)
    fingerprint = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()[:16]
    totals = {name: sum(shard[name] for shard in shards) for name in ("num_transitions", "num_bankrupt")}
    manifest = {
        "catalog": sessions.catalog.to_json(),
        "embedder": sessions.embedder,
        "layout": layout.to_json(),
        "configs": {"hbr": asdict(config.hbr), "estimator": asdict(config.estimator)},
        "num_sessions": sessions.num_sessions,
        "num_turns": len(sessions.action),
        **totals,
        "mean_cost_usd": mean_cost_usd(sessions),
        "shards": [{k: shard[k] for k in ("name", "num_transitions", "num_bankrupt", "sha256")} for shard in shards],
        "data_fingerprint": fingerprint,
    }
    ds.write_manifest(config.out, manifest)
    logger.info("event=relabeled num_transitions=%d out=%s", totals["num_transitions"], config.out)
    return RelabelReport(
        num_sessions=sessions.num_sessions,
        num_turns=len(sessions.action),
        num_workers=len({shard["worker"] for shard in shards}),
        data_fingerprint=fingerprint,
        out=str(config.out),
        **totals,
    )


def mean_cost_usd(sessions: Sessions) -> list[float]:
    """[K] mean logged turn cost of each model."""
    num_models = len(sessions.catalog)
    total = np.bincount(sessions.action, weights=to_usd(sessions.cost_nusd), minlength=num_models)
    return [float(x) for x in total / np.maximum(np.bincount(sessions.action, minlength=num_models), 1)]


def write_turn_table(sessions: Sessions, config: RelabelConfig) -> StateLayout:
    """Fit the estimator, write it and the turns' cross-fitted features; returns the state layout."""
    estimates, summary = cross_fitted(sessions, config.estimator)
    layout = StateLayout(
        num_models=len(sessions.catalog),
        summary_width=summary.shape[1],
        reference_cost_usd=reference_cost_usd(to_usd(sessions.cost_nusd), sessions.action, len(sessions.catalog)),
        expected_turns_left=expected_turns_left(sessions.num_turns),
    )
    ds.write_turns(config.out, sessions.embedding, TurnFeatures(estimates, running_mean(summary, sessions.offsets)))
    ds.write_estimator(config.out, fit_estimator(observe(sessions), config.estimator, sessions.catalog.names))
    return layout


def relabel_shards(config: RelabelConfig, reference_usd: float, progress: Progress) -> list[dict[str, Any]]:
    """Relabel every row group of the session file on Ray Data; one description a shard, in order."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False  # `progress` tells the caller
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)  # plans and progress, for developers of Ray
    tasks = shard_tasks(config.out / FIT_SESSIONS)

    def work(task: dict[str, Any]) -> dict[str, Any]:
        return relabel_shard(config, reference_usd, task)

    done = []
    for shard in ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(work).iter_rows():
        done.append(shard)
        progress(len(done), len(tasks))
    return sorted(done, key=lambda shard: int(shard["shard"]))


def shard_tasks(path: Path) -> list[dict[str, int]]:
    """One task a row group: its number and the turn row of its first turn."""
    file, tasks, first_turn_row = pq.ParquetFile(path), [], 0
    for shard in range(file.num_row_groups):
        tasks.append({"shard": shard, "first_turn_row": first_turn_row})
        lists = file.read_row_group(shard, columns=["action"])["action"]
        first_turn_row += sum(len(chunk.flatten()) for chunk in lists.chunks)
    return tasks


def relabel_shard(config: RelabelConfig, reference_usd: float, task: dict[str, Any]) -> dict[str, Any]:
    """One Ray Data row: read the sessions, relabel, write the shard, describe it."""
    import ray

    sessions = read_sessions(config.out / FIT_SESSIONS, [task["shard"]])
    transitions = relabel(sessions, task["first_turn_row"], reference_usd, config.hbr)
    name = f"part-{task['shard']:05d}.parquet"
    return {
        "shard": task["shard"],
        "name": name,
        "num_transitions": len(transitions),
        "num_bankrupt": int(transitions.bankrupt.sum()),
        "sha256": ds.write_shard(transitions, config.out / ds.SHARDS / name),
        "worker": ray.get_runtime_context().get_worker_id(),
    }
