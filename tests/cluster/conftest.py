"""One cluster for all modules, a head and two nodes that work, and one small dataset."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from tests.cluster.nodes import Nodes, WorkerNode
from tests.training.toy_mdp import ToyMdp

NUM_WORKERS = 2


@pytest.fixture(scope="package")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A socket's path is short. Ray notes the newest cluster's address there, else others of this machine join it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TMPDIR", folder)
            (Path(folder) / "ray").mkdir()
            cluster = Nodes(Path(folder), tmp_path_factory.mktemp("scratch"))
        yield cluster
        cluster.stop()


@pytest.fixture
def workers(nodes: Nodes) -> list[WorkerNode]:
    """Two that live: those that an earlier test has killed are replaced."""
    while len(nodes.workers) < NUM_WORKERS:
        nodes.add()
    return [*nodes.workers]


@pytest.fixture(scope="package")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_sessions(ToyMdp(300, seed=0).sessions(), folder / "sessions.parquet")
    hbr = HbrConfig(paths="sampled", num_paths=2, num_budgets=4)
    relabel_sessions(
        RelabelConfig(sessions=folder / "sessions.parquet", out=folder / "dataset", hbr=hbr, runner="local")
    )
    return folder / "dataset"


@pytest.fixture(scope="package")
def tune_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, sessions = tmp_path_factory.mktemp("tune") / "sessions.parquet", ToyMdp(100, seed=1).sessions()
    write_sessions(replace(sessions, part=np.full_like(sessions.part, "tune", dtype="<U4")), path)
    return path
