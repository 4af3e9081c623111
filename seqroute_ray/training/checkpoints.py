"""Checkpoints of a training run: whole or not there, the newest to go on from, the best to make a policy of."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

FIGURES = "seqroute.json"


class Savable(Protocol):
    """What RLlib's Algorithm offers."""

    def save_to_path(self, path: str) -> str: ...


@dataclass(frozen=True)
class Checkpoint:
    """One of them: a folder that DiscreteCQL.from_checkpoint reads."""

    path: Path
    num_steps: int  # gradient steps
    metrics: dict[str, float]  # on the tune part; empty where it was not evaluated


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one folder."""

    folder: Path
    keep: int  # newest ones; the best one stays too
    metric: str  # of Checkpoint.metrics, higher is better

    @classmethod
    def beside(cls, out: Path, identity: Mapping[str, Any], keep: int, metric: str) -> "Checkpoints":
        """In OUT.checkpoints, in a folder of its own for each identity (data and settings): others are left alone."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return cls(out.with_name(f"{out.name}.checkpoints") / key, keep, metric)

    def all(self) -> list[Checkpoint]:
        """Oldest first."""
        found = []
        for path in sorted(self.folder.glob("step-*")):
            figures = json.loads((path / FIGURES).read_text())
            found.append(Checkpoint(path, figures["num_steps"], figures["metrics"]))
        return found

    @property
    def newest(self) -> Checkpoint | None:
        return next(reversed(self.all()), None)

    @property
    def best(self) -> Checkpoint | None:
        """Of those with the metric; the oldest of equals."""
        measured = [checkpoint for checkpoint in self.all() if self.metric in checkpoint.metrics]
        return max(measured, key=lambda checkpoint: checkpoint.metrics[self.metric], default=None)

    def save(self, algorithm: Savable, num_steps: int, metrics: dict[str, float]) -> None:
        """Write a checkpoint, then delete those that are no longer kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"unfinished-{uuid4().hex}"
        algorithm.save_to_path(str(unfinished.absolute()))
        (unfinished / FIGURES).write_text(json.dumps({"num_steps": num_steps, "metrics": metrics}, indent=1) + "\n")
        _flush(unfinished)
        path = self.folder / f"step-{num_steps:09d}"
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
        kept = {checkpoint.path for checkpoint in (*self.all()[-self.keep :], self.best) if checkpoint}
        for other in self.folder.iterdir():  # what a kill left unfinished too
            if other not in kept:
                shutil.rmtree(other)

    def delete(self) -> None:
        """All of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    """The bytes are on the disk before the name is."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
