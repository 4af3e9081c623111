"""A path that not all nodes see: an error that names it, before anything is done."""

from pathlib import Path

import pytest

from seqroute_ray.core.sessions import write_sessions
from tests.cluster.nodes import Nodes, WorkerNode
from tests.data.test_importer import good_rows, write_lines
from tests.support import make_sessions

OWN = Path("/proc/self/cwd")  # another folder on each node
WAY_OUT = "which may get part of the work; use a folder that every node sees, or a URI such as s3://BUCKET/FOLDER"


def refused(nodes: Nodes, cwd: Path, *words: str | Path) -> str:
    """What a command in the folder says."""
    ended = nodes.seqroute(*words, cwd=cwd)
    assert (ended.code, ended.stdout) == (2, ""), ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.mark.ray
def test_a_folder_that_one_node_does_not_see_is_named_and_nothing_is_left_in_it(
    nodes: Nodes, workers: list[WorkerNode], tmp_path: Path
) -> None:
    sessions, here = tmp_path / "s.parquet", tmp_path / "here"
    here.mkdir()
    write_sessions(make_sessions([2] * 20), sessions)
    said = refused(nodes, here, "relabel", "--sessions", sessions, "--out", OWN / "d")
    assert said.startswith(f"seqroute: {OWN / 'd'}: is not there on node ")
    assert said.endswith(WAY_OUT)
    assert list(here.iterdir()) == []
    assert nodes.seqroute("relabel", "--sessions", sessions, "--out", tmp_path / "d").result["num_shards"] == 1
    assert list(tmp_path.rglob(".seqroute-*")) == []
    assert all(not (node.scratch / "d").exists() for node in workers)


@pytest.mark.cluster
def test_a_file_that_is_another_one_on_a_node_is_named(
    nodes: Nodes, workers: list[WorkerNode], toy_dataset: Path, tune_sessions: Path, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    write_lines(tmp_path / "logs/log.jsonl", good_rows())
    said = refused(nodes, tmp_path, "import", "--logs", OWN / "logs", "--out", tmp_path / "sessions.parquet")
    assert said.startswith(f"seqroute: {OWN / 'logs'}: is not there on node ")
    (tmp_path / "s.parquet").write_bytes(tune_sessions.read_bytes())
    (tmp_path / "dataset").symlink_to(toy_dataset)
    few_steps = ("--cql.num-steps", "20", "--cql.batch-size", "64")
    tune = ("tune", "--dataset", toy_dataset, "--tune-sessions", OWN / "s.parquet", "--out", tmp_path / "t")
    said = refused(nodes, tmp_path, *tune, *few_steps, "--grace-steps", "20")
    assert said.startswith(f"seqroute: {OWN / 's.parquet'}: is not there on node ")
    for node in workers:
        (node.scratch / "dataset").mkdir()
        (node.scratch / "dataset/manifest.json").write_text("{}")
    train = ("train", "--dataset", OWN / "dataset", "--out", tmp_path / "p", *few_steps)
    said = refused(nodes, tmp_path, *train, "--cql.num-learners", "2")
    assert said.startswith(f"seqroute: {OWN / 'dataset/manifest.json'}: is another file on node ")
    assert nodes.seqroute(*train, cwd=tmp_path).result["num_steps"] == 20  # without learners nobody else reads it
