"""Relabeling on two nodes, one of which dies: the same dataset as in one go."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import to_table
from seqroute_ray.core.storage import Folder
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from tests.cluster.nodes import Nodes, WorkerNode
from tests.support import make_sessions

pytestmark = pytest.mark.ray
NUM_SHARDS, PER_SHARD = 40, 400
HBR = HbrConfig(paths="sampled", num_paths=16, num_budgets=16)
FLAGS = ("--hbr.paths", "sampled", "--hbr.num-paths", "16", "--hbr.num-budgets", "16")
WORKER = "ray::Map"  # how a process calls itself while it relabels a shard


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    made = make_sessions(rng.integers(1, 6, size=NUM_SHARDS * PER_SHARD).tolist(), num_models=3)
    path = tmp_path_factory.mktemp("sessions") / "s.parquet"
    pq.write_table(to_table(made), path, row_group_size=PER_SHARD)
    return path


def num_done(out: Path) -> int:
    return len(list(out.glob("receipts/*.json")))


def at_work(workers: list[WorkerNode], out: Path) -> WorkerNode | None:
    """One that is, once two shards are done."""
    return next((node for node in workers if num_done(out) >= 2 and node.runs(WORKER)), None)


def contents(out: Path) -> dict[str, bytes]:
    folder = Folder.at(out)
    return {name: folder.read(name) for name in folder.names()}


def test_a_node_that_dies_costs_relabeling_nothing_but_time(
    nodes: Nodes, workers: list[WorkerNode], sessions: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "d"
    reference = relabel_sessions(RelabelConfig(sessions=sessions, out=whole, hbr=HBR, runner="local"))
    words = ("relabel", "--sessions", sessions, "--out", out, *FLAGS)
    with nodes.command("seqroute_ray.cli", *words) as command:
        node = command.until(lambda: at_work(workers, out))
        assert node is not None
        nodes.kill(node)
        assert num_done(out) < NUM_SHARDS
        result = command.ended().result
    assert result["data_fingerprint"] == reference.data_fingerprint
    assert contents(out) == contents(whole)
