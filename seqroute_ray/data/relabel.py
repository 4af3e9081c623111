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
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.estimator import EstimatorConfig, OutcomeEstimator, cross_fit, fit_estimator, held_out, observe
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel_in_chunks
from seqroute_ray.core.mdp import StateLayout, TurnFeatures, running_mean
from seqroute_ray.core.sessions import Sessions, observed_outcomes
from seqroute_ray.core.storage import Folder, Location, one_line
from seqroute_ray.core.strata import NUM_STRATA, difficulty, importance_weights, strata, stratum_names
from seqroute_ray.data.runners import WORKER, Row, RunnerName, Task, Work, run
from seqroute_ray.data.session_file import SessionFile

logger = logging.getLogger(__name__)
RECEIPTS = "receipts"
OWN_FILE = re.compile(
    rf"(({ds.TURNS}|{ds.TRANSITIONS})/part-\d{{5,}}\.parquet|{RECEIPTS}/part-\d{{5,}}\.json)(\.\d+\.tmp)?"
)
MAX_TRIES = 3  # of a shard whose worker dies, before its sessions are tried one by one
NAMED = 5  # bad sessions that an error names


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


@dataclass(frozen=True)
class Done:
    """Progress, in shards, sessions and transitions."""

    shards: int
    num_shards: int
    sessions: int
    num_sessions: int
    transitions: int


Progress = Callable[[Done], None]


def relabel_sessions(config: RelabelConfig, progress: Progress = lambda _done: None) -> RelabelReport:
    """Make the dataset, or find it made. Ray must be initialised for runner=ray. Raises DataError, ConfigError."""
    folder = Folder.at(config.out)
    sessions = SessionFile.scan(config.sessions)
    key = _key(config, sessions)
    if folder.exists(ds.MANIFEST):
        manifest = ds.read_manifest(config.out)
        if manifest["key"] != key:
            raise DataError(f"{config.out}: holds a finished dataset of other settings; choose another folder")
        return _report(manifest, config, num_resumed=len(manifest["shards"]), num_workers=0)
    refuse_paths_without_outcomes(config, sessions)
    shards = Shards.prepare(config, sessions, key)
    done, quarantined = run_shards(shards, config, sessions, progress)
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
        "estimator_sha256": shards.estimator_sha256,
        "shards": receipts,
        "data_fingerprint": ds.fingerprint(receipts, shards.estimator_sha256),
    }
    ds.write_manifest(folder, manifest)
    _tidy(folder, receipts)
    logger.info("event=relabeled num_transitions=%d out=%s", totals["num_transitions"], config.out)
    resumed = sum(row["resumed"] for row in done)
    workers = {row[WORKER] for row in done if not row["resumed"]}
    return _report(manifest, config, num_resumed=resumed, num_workers=len(workers))


def refuse_paths_without_outcomes(config: RelabelConfig, sessions: SessionFile) -> None:
    """Raises DataError when the paths that are asked for are in no session."""
    if config.hbr.paths != "logged" and not sessions.has_a_tree():
        raise DataError(
            f"{config.sessions}: paths={config.hbr.paths} needs sessions with every model's outcome of every turn; "
            "there is none; use paths=logged"
        )


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
    wanted = {name for row in receipts for name in ds.shard_files(row["shard"])}
    for name in folder.names():
        if OWN_FILE.fullmatch(name) and name not in wanted:
            folder.delete(name)


COUNTS = ("num_sessions", "num_turns", "num_transitions", "num_bankrupt")
SHARD_FIELDS = ("shard", *COUNTS, "strata", "turns_sha256", "transitions_sha256")


@dataclass(frozen=True)
class Shards:
    """The work on one shard: what every worker needs to know. Picklable."""

    folder: Folder
    sessions: SessionFile
    hbr: HbrConfig
    layout: StateLayout
    models: tuple[OutcomeEstimator, ...]  # one a fold
    estimator_sha256: str
    key: str  # of the settings and of the estimators

    @classmethod
    def prepare(cls, config: RelabelConfig, sessions: SessionFile, key: str) -> "Shards":
        """Fit the estimators and write the one that serving will use."""
        folder = Folder.at(config.out)
        # One thread: sums of floats depend on how they are split, and several are slower on these small matrices.
        with threadpool_limits(1, "blas"):
            seen = observe(sessions.sample(config.max_fit_sessions))
            models = cross_fit(seen, config.estimator, sessions.catalog.names)
            estimator = ds.encode_estimator(fit_estimator(seen, config.estimator, sessions.catalog.names))
        layout = StateLayout(
            num_models=len(sessions.catalog),
            summary_width=models[0].features.summary_width,
            reference_cost_usd=sessions.reference_cost_usd,
            expected_turns_left=sessions.expected_turns_left,
        )
        try:
            folder.write(ds.ESTIMATOR, estimator)
        except OSError as error:
            raise DataError(f"{config.out}: cannot be written ({one_line(error)}); choose another folder") from error
        sums = [ds.sha256(ds.encode_estimator(model)) for model in models]
        return cls(
            folder=folder,
            sessions=sessions,
            hbr=config.hbr,
            layout=layout,
            models=tuple(models),
            estimator_sha256=ds.sha256(estimator),
            key=ds.sha256("".join([key, *sums]).encode())[:16],
        )

    def features(self, sessions: Sessions) -> TurnFeatures:
        """Of the sessions' turns, each estimated by a fold that did not see its group."""
        with threadpool_limits(1, "blas"):
            estimates, summary = held_out(self.models, sessions)
        return TurnFeatures(estimates, running_mean(summary, sessions.offsets))

    def difficulty(self, sessions: Sessions) -> NDArray[np.int8]:
        """[N] of the sessions' turns, as far as outcomes tell."""
        quality, _ = observed_outcomes(sessions)
        return difficulty(quality, self.sessions.cheapest, self.sessions.strongest)

    def write(self, task: Task) -> Row:
        """Relabel one shard, or find it done: its files, then its receipt."""
        receipt = f"{RECEIPTS}/part-{task['shard']:05d}.json"
        terms = {"key": self.key, "left_out": task.get("left_out", [])}
        found = self._receipt(receipt, terms)
        if found is not None:
            return {**found, "resumed": True}
        sessions = self.sessions.read(task["shard"])
        if terms["left_out"]:
            sessions = sessions.take(~np.isin(sessions.session_id, terms["left_out"]))
        hard = self.difficulty(sessions)
        turns = ds.encode_turns(sessions.embedding, self.features(sessions), hard)
        counts = Counts(hard)
        chunks = relabel_in_chunks(sessions, self.layout.reference_cost_usd, self.hbr)
        transitions = ds.encode_transitions(counts.of(chunks))
        row = {
            "shard": task["shard"],
            "num_sessions": sessions.num_sessions,
            "num_turns": len(sessions.action),
            "num_transitions": counts.num_transitions,
            "num_bankrupt": counts.num_bankrupt,
            "strata": counts.strata.tolist(),
            "turns_sha256": ds.sha256(turns),
            "transitions_sha256": ds.sha256(transitions),
        }
        for name, content in zip(ds.shard_files(task["shard"]), (turns, transitions), strict=True):
            self.folder.write(name, content)
        self.folder.write(receipt, json.dumps({**row, **terms}).encode())
        return {**row, "resumed": False}

    def _receipt(self, name: str, terms: dict[str, Any]) -> Row | None:
        """What a finished shard's receipt says, if it is of this run and its files are what it says."""
        try:
            row: Row = json.loads(self.folder.read(name))
            if any(row[term] != value for term, value in terms.items()):
                return None
            sums = [ds.sha256(self.folder.read(file)) for file in ds.shard_files(row["shard"])]
        except (OSError, ValueError, KeyError):
            return None
        return row if sums == [row["turns_sha256"], row["transitions_sha256"]] else None

    def probe(self, task: Task) -> Row:
        """Do the work on one session alone, for nothing but to see whether the worker lives."""
        session = self.sessions.read(task["shard"]).take(np.array([task["session"]]))
        ds.encode_turns(session.embedding, self.features(session), self.difficulty(session))
        ds.encode_transitions(relabel_in_chunks(session, self.layout.reference_cost_usd, self.hbr))
        return {"shard": task["shard"], "session": task["session"]}


@dataclass
class Counts:
    """Counts transitions as they pass."""

    difficulty: NDArray[np.int8]  # [N] of the shard's turns
    strata: IntArray = field(default_factory=lambda: np.zeros(NUM_STRATA, dtype=np.int64))

    def of(self, chunks: Iterator[Transitions]) -> Iterator[Transitions]:
        for chunk in chunks:
            stratum = strata(self.difficulty[chunk.turn_row], chunk.bankrupt)
            self.strata += np.bincount(stratum, minlength=NUM_STRATA)
            yield chunk

    @property
    def num_transitions(self) -> int:
        return int(self.strata.sum())

    @property
    def num_bankrupt(self) -> int:
        return int(self.strata[1::2].sum())


def run_shards(
    shards: Shards, config: RelabelConfig, sessions: SessionFile, progress: Progress
) -> tuple[list[Row], list[str]]:
    """The shards' rows in order, and the sessions that had to be left out.

    A shard whose worker dies is tried MAX_TRIES times, then its sessions one by one; those that kill their worker are
    left out if max_bad_share allows it. Raises DataError naming them otherwise.
    """
    tasks = [{"shard": shard} for shard in np.flatnonzero(sessions.num_sessions).tolist()]
    total = int(sessions.num_sessions.sum())
    done: dict[int, Row] = {}
    errors: list[str] = []

    def work_through(tasks: Sequence[Task]) -> list[Task]:
        for row in run(config.runner, tasks, shards.write, errors.append):
            done[row["shard"]] = row
            totals = (sum(row[name] for row in done.values()) for name in ("num_sessions", "num_transitions"))
            progress(Done(len(done), int(np.count_nonzero(sessions.num_sessions)), next(totals), total, next(totals)))
        return [task for task in tasks if task["shard"] not in done]

    left: Sequence[Task] = tasks
    for _ in range(MAX_TRIES):
        left = work_through(left)
        if not left:
            return [done[shard] for shard in sorted(done)], []
    bad = crashing_sessions(shards.probe, config.runner, left, sessions)
    names = [name for group in bad.values() for name in group]
    if not names:
        raise DataError(
            f"{config.out}: shard {left[0]['shard']} fails in {MAX_TRIES} tries though each of its sessions alone does "
            f"not ({errors[-1] if errors else 'its worker died; is memory short?'}); run again to go on"
        )
    if len(names) > config.max_bad_share * total:
        raise DataError(
            f"{config.sessions}: {len(names)} of {total} sessions crash their worker ({', '.join(names[:NAMED])}"
            f"{', ...' if len(names) > NAMED else ''}); mend them, or raise max_bad_share {config.max_bad_share:g} and "
            "run again: finished shards are kept"
        )
    logger.warning("event=sessions_left_out count=%d first=%s", len(names), names[0])
    if work_through([{**task, "left_out": bad[task["shard"]]} for task in left]):
        raise DataError(f"{config.out}: shard {left[0]['shard']} fails without its bad sessions too; run again")
    return [done[shard] for shard in sorted(done)], names


def crashing_sessions(
    probe: Work, runner: RunnerName, left: Sequence[Task], sessions: SessionFile
) -> dict[int, list[str]]:
    """The ids of those sessions of some shards that do not survive alone, by shard."""
    shards = [task["shard"] for task in left]
    tasks = [{"shard": s, "session": i} for s in shards for i in range(int(sessions.num_sessions[s]))]
    alive = {(row["shard"], row["session"]) for row in run(runner, tasks, probe)}
    bad: dict[int, list[str]] = {shard: [] for shard in shards}
    for task in tasks:
        if (task["shard"], task["session"]) not in alive:
            bad[task["shard"]].append(str(sessions.read(task["shard"]).session_id[task["session"]]))
    return bad
