"""Hindsight budget relabeling as a job: a session file in, a training dataset out.

1. Scan the session file for its totals; fit the outcome estimator on a sample of its sessions.
2. Relabel every row group into a shard: on Ray Data's workers, or in this process. A shard is a pure function of its
   sessions, so the dataset is the same whoever did the work. A shard that is done has a receipt with its checksums: a
   run that was killed goes on where it was.
3. Write the manifest. Only now is it a dataset.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.storage import Folder, Location
from seqroute_ray.core.strata import importance_weights, stratum_names
from seqroute_ray.data.receipts import write_or_refuse
from seqroute_ray.data.runners import WORKER, Row, RunnerName
from seqroute_ray.data.session_file import SessionFile
from seqroute_ray.data.shards import COUNTS, OWN_FILE, SHARD_FIELDS, Shards
from seqroute_ray.data.tries import Progress, run_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelConfig:
    """From a session file to a dataset. Each field is a flag of `seqroute relabel`."""

    sessions: Location  # session Parquet, a path or URI; its fit part is used, or all of it when it names no parts
    out: Location  # folder of the dataset, a path or URI; an unfinished run of the same settings there goes on
    hbr: HbrConfig = field(default_factory=HbrConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    max_fit_sessions: int = 10_000  # sessions that the estimator is fitted on, at random; bounds the driver's memory
    runner: RunnerName = "ray"  # local: in this process, without Ray
    max_bad_share: float = 0.0  # of sessions that may be left out because they crash every worker that relabels them

    def __post_init__(self) -> None:
        if self.max_fit_sessions < 1:
            raise ConfigError(f"max_fit_sessions must be at least 1, got {self.max_fit_sessions}")
        if not 0.0 <= self.max_bad_share < 1.0:
            raise ConfigError(f"max_bad_share must be in [0, 1), got {self.max_bad_share}")


@dataclass(frozen=True)
class RelabelReport:
    """What was written."""

    num_sessions: int
    num_turns: int
    num_transitions: int
    num_bankrupt: int
    num_quarantined: int  # sessions left out, named in the manifest
    num_shards: int
    num_resumed: int  # shards that were there already
    num_workers: int  # distinct workers that relabeled at least one shard
    data_fingerprint: str
    out: str
    runner: str


def relabel_sessions(config: RelabelConfig, progress: Progress = lambda _done: None) -> RelabelReport:
    """Make the dataset, or find it made. Ray must be initialised for runner=ray. Raises DataError, ConfigError."""
    folder = Folder.at(config.out)
    sessions = SessionFile.scan(config.sessions)
    finished = check(config, sessions)
    if finished is not None:
        return _report(finished, config, num_resumed=len(finished["shards"]), num_workers=0)
    key = _key(config, sessions)
    shards = Shards.prepare(folder, sessions, config.hbr, config.estimator, config.max_fit_sessions, key)
    done, quarantined = run_shards(shards, config.runner, config.max_bad_share, progress)
    receipts = [{name: row[name] for name in SHARD_FIELDS} for row in done]
    totals = {name: sum(row[name] for row in receipts) for name in COUNTS}
    manifest = {
        "catalog": sessions.catalog.to_json(),
        "embedder": sessions.embedder,
        "layout": shards.layout.to_json(),
        "configs": {"hbr": asdict(config.hbr), "estimator": asdict(config.estimator)},
        "key": key,
        **totals,
        "quarantined": quarantined,
        "mean_cost_usd": sessions.mean_cost_usd.tolist(),
        "strata": strata_rows(np.sum([row["strata"] for row in receipts], axis=0)),
        "estimator_sha256": ds.sha256(shards.estimator),
        "shards": receipts,
        "data_fingerprint": ds.fingerprint(receipts, ds.sha256(shards.estimator)),
    }
    check(config, sessions)  # another run may have finished meanwhile
    write_or_refuse(folder, ds.ESTIMATOR, shards.estimator)
    write_or_refuse(folder, ds.MANIFEST, ds.encode_manifest(manifest))
    _tidy(folder, receipts)
    logger.info("event=relabeled num_transitions=%d out=%s", totals["num_transitions"], config.out)
    resumed = sum(row["resumed"] for row in done)
    workers = {row[WORKER] for row in done if not row["resumed"]}
    return _report(manifest, config, num_resumed=resumed, num_workers=len(workers))


def check(config: RelabelConfig, sessions: SessionFile) -> dict[str, Any] | None:
    """The manifest of a finished dataset of the same settings in `out`; None when there is none yet.

    Raises DataError when there is one of other settings or a file of it is missing, and when the paths that are asked
    for are in no session; ConfigError when the budgets make no sense for these sessions.
    """
    config.hbr.check_budgets(sessions.reference_cost_usd)
    folder = Folder.at(config.out)
    if folder.exists(ds.MANIFEST):
        manifest = ds.read_manifest(config.out)
        if manifest["key"] != _key(config, sessions):
            raise DataError(f"{config.out}: holds a finished dataset of other settings; choose another folder")
        missing = _files(manifest["shards"]) - set(folder.names())
        if missing:
            raise DataError(f"{config.out}: the finished dataset lacks {min(missing)}; relabel into another folder")
        return manifest
    if config.hbr.paths != "logged" and not sessions.has_a_tree():
        raise DataError(
            f"{config.sessions}: paths={config.hbr.paths} needs sessions with every model's outcome of every turn; "
            "there is none; use paths=logged"
        )
    return None


def _files(shards: Sequence[Row]) -> set[str]:
    """What a dataset of these shards has beside its manifest."""
    return {ds.ESTIMATOR, *(name for row in shards for name in ds.shard_files(row))}


def _key(config: RelabelConfig, sessions: SessionFile) -> str:
    """What the dataset is made of: the same key, the same dataset."""
    settings = {
        "format": ds.FORMAT_VERSION,
        "hbr": asdict(config.hbr),
        "estimator": asdict(config.estimator),
        "max_fit_sessions": config.max_fit_sessions,
        "sessions": sessions.sha256,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def strata_rows(counts: IntArray) -> list[dict[str, Any]]:
    """The strata that occur, with the weight that undoes drawing them equally often; counts: [NUM_STRATA]."""
    weights = importance_weights(counts)
    return [
        {"difficulty": name, "bankrupt": bankrupt, "num_transitions": int(count), "weight": float(weight)}
        for (name, bankrupt), count, weight in zip(stratum_names(), counts, weights, strict=True)
        if count
    ]


def _report(manifest: dict[str, Any], config: RelabelConfig, num_resumed: int, num_workers: int) -> RelabelReport:
    return RelabelReport(
        **{name: manifest[name] for name in COUNTS},
        num_quarantined=len(manifest["quarantined"]),
        num_shards=len(manifest["shards"]),
        num_resumed=num_resumed,
        num_workers=num_workers,
        data_fingerprint=manifest["data_fingerprint"],
        out=str(config.out),
        runner=config.runner,
    )


def _tidy(folder: Folder, receipts: Sequence[Row]) -> None:
    """Delete receipts, and shards of an earlier run of other settings; files that have no such name are not ours."""
    wanted = _files(receipts)
    for name in folder.names():
        if OWN_FILE.fullmatch(name) and name not in wanted:
            folder.delete(name)
