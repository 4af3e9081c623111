"""The work on one shard of a dataset: from a row group of sessions to its two files and its receipt.

A shard is a pure function of its sessions and of the estimators: whoever does the work, and how often, the bytes are
the same.
"""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.fitting import EstimatorConfig, cross_fit, fit_estimator, held_out, observe
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel_in_chunks
from seqroute_ray.core.mdp import StateLayout, TurnFeatures, running_mean
from seqroute_ray.core.risk_plan import plan_risk
from seqroute_ray.core.sessions import Sessions, observed_outcomes
from seqroute_ray.core.storage import Folder
from seqroute_ray.core.strata import NUM_STRATA, difficulty, strata
from seqroute_ray.data.receipts import finished, write_or_refuse
from seqroute_ray.data.runners import Row, Task
from seqroute_ray.data.session_file import SessionFile

RECEIPTS = "receipts"
OWN_FILE = re.compile(
    rf"({ds.TURNS}|{ds.TRANSITIONS}|{RECEIPTS})/part-\d{{5,}}-[0-9a-f]{{8}}\.(parquet|json)(\.[0-9a-f]+\.tmp)?"
)
COUNTS = ("num_sessions", "num_turns", "num_transitions", "num_bankrupt")
SHARD_FIELDS = ("shard", "key", *COUNTS, "strata", "turns_sha256", "transitions_sha256")


def one_thread() -> AbstractContextManager[object]:
    """For linear algebra: sums of floats depend on how they are split, and small matrices gain nothing from more."""
    return _loaded_libraries().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


@cache
def _loaded_libraries() -> ThreadpoolController:
    """Found once a process: the search reads the process's memory map."""
    return ThreadpoolController()


@dataclass(frozen=True)
class Shards:
    """The work on one shard: what every worker needs to know. Picklable."""

    folder: Folder
    sessions: SessionFile
    hbr: HbrConfig
    layout: StateLayout
    models: tuple[OutcomeEstimator, ...]  # one a fold
    estimator: bytes  # the file of the one that serving will use
    key: str  # of the settings and of the estimators

    @classmethod
    def prepare(
        cls,
        folder: Folder,
        sessions: SessionFile,
        hbr: HbrConfig,
        estimator_config: EstimatorConfig,
        max_fit_sessions: int,
        key: str,
    ) -> "Shards":
        """Fit the estimators on a sample. key: of the settings."""
        with one_thread():
            sample = sessions.sample(max_fit_sessions)
            seen = observe(sample)
            models = cross_fit(seen, estimator_config, sessions.catalog.names)
            fitted = fit_estimator(seen, estimator_config, sessions.catalog.names)
        layout = StateLayout(
            num_models=len(sessions.catalog),
            summary_width=models[0].features.summary_width,
            reference_cost_usd=sessions.reference_cost_usd,
            expected_turns_left=sessions.expected_turns_left,
        )
        with one_thread():
            risk = plan_risk(sample, fitted.features.types, layout.reference_cost_usd)
        sums = [ds.sha256(ds.encode_estimator(model)) for model in models]
        return cls(
            folder=folder,
            sessions=replace(sessions, keys=sessions.keys[:0]),  # they were for the sample: as long as all sessions
            hbr=hbr,
            layout=layout,
            models=tuple(models),
            estimator=ds.encode_estimator(replace(fitted, risk=risk)),
            key=ds.sha256("".join([key, *sums]).encode())[:16],
        )

    def features(self, sessions: Sessions) -> TurnFeatures:
        """Of the sessions' turns, each estimated by a fold that did not see its group."""
        with one_thread():
            estimates, summary = held_out(self.models, sessions)
        return TurnFeatures(estimates, running_mean(summary, sessions.offsets))

    def difficulty(self, sessions: Sessions) -> NDArray[np.int8]:
        """[N] of the sessions' turns, as far as outcomes tell."""
        quality, _ = observed_outcomes(sessions)
        return difficulty(quality, self.sessions.cheapest, self.sessions.strongest)

    def write(self, task: Task) -> Row:
        """Relabel one shard, or find it done: its files, then its receipt."""
        terms = {"shard": task["shard"], "key": self.key, "left_out": task.get("left_out", [])}
        receipt = f"{RECEIPTS}/{ds.part_name(terms)}.json"
        found = finished(self.folder, receipt, terms, ds.shard_sums)
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
            **terms,
            "num_sessions": sessions.num_sessions,
            "num_turns": len(sessions.action),
            "num_transitions": counts.num_transitions,
            "num_bankrupt": counts.num_bankrupt,
            "strata": counts.strata.tolist(),
            "turns_sha256": ds.sha256(turns),
            "transitions_sha256": ds.sha256(transitions),
        }
        for name, content in zip(ds.shard_files(row), (turns, transitions), strict=True):
            write_or_refuse(self.folder, name, content)
        write_or_refuse(self.folder, receipt, json.dumps(row).encode())
        return {**row, "resumed": False}

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
