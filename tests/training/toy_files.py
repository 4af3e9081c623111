"""The toy MDP's sessions as files: a dataset to train on, and a tune part."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions

from .toy_mdp import ToyMdp


def write_toy_dataset(folder: Path, num_sessions: int, num_paths: int) -> Path:
    """Relabeled in this process."""
    write_sessions(ToyMdp(num_sessions, seed=0).sessions(), folder / "sessions.parquet")
    hbr = HbrConfig(paths="sampled", num_paths=num_paths, num_budgets=4)
    relabel_sessions(
        RelabelConfig(sessions=folder / "sessions.parquet", out=folder / "dataset", hbr=hbr, runner="local")
    )
    return folder / "dataset"


def write_tune_sessions(path: Path, num_sessions: int = 100) -> Path:
    sessions = ToyMdp(num_sessions, seed=1).sessions()
    write_sessions(replace(sessions, part=np.full_like(sessions.part, "tune", dtype="<U4")), path)
    return path
