"""One cluster for all modules, a head and two nodes that work, and one small dataset."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, WorkerNode
from tests.training.toy_files import write_toy_dataset, write_tune_sessions

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
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), num_sessions=300, num_paths=2)


@pytest.fixture(scope="package")
def tune_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tune_sessions(tmp_path_factory.mktemp("tune") / "sessions.parquet")
