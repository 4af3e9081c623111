"""A search whose trials run on two nodes, one of which dies."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster.nodes import Nodes, WorkerNode

pytestmark = pytest.mark.cluster
NUM_TRIALS, NUM_STEPS, EVERY = 3, 1000, 250
FLAGS = ("--num-trials", str(NUM_TRIALS), "--search", "lr", "--cql.batch-size", "128")
STEPS = ("--cql.num-steps", str(NUM_STEPS), "--judge-every", str(EVERY), "--grace-steps", str(NUM_STEPS))


def reports(out: Path) -> dict[str, list[dict[str, int]]]:
    """What each trial told Tune so far."""
    files = out.glob("trials/*/result.json")
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def trials_on(node: WorkerNode, out: Path) -> list[str]:
    """Trials of the node that are on their way and have a checkpoint."""
    pids = node.processes()
    return [
        trial
        for trial, told in reports(out).items()
        if told and told[-1]["pid"] in pids and told[-1]["num_steps"] < NUM_STEPS
        if list(out.glob(f"policies/{trial}.checkpoints/*/step-*"))
    ]


def test_a_search_comes_to_its_end_when_a_node_dies(
    nodes: Nodes, workers: list[WorkerNode], toy_dataset: Path, tune_sessions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    words = ("tune", "--dataset", toy_dataset, "--tune-sessions", tune_sessions, "--out", out, *FLAGS, *STEPS)
    with nodes.command("seqroute_ray.cli", *words) as command:
        node, killed = command.until(lambda: [(node, trial) for node in workers for trial in trials_on(node, out)])[0]
        nodes.kill(node)
        nodes.add()
        result = command.ended().result
    assert (result["num_trials"], result["num_errors"]) == (NUM_TRIALS, 0)
    looks = pq.read_table(result["results_parquet"]).to_pylist()
    for trial in reports(out):
        steps = [look["num_steps"] for look in looks if look["trial"] == trial]
        assert steps == list(range(EVERY, NUM_STEPS + 1, EVERY))
    told = [report["num_steps"] for report in reports(out)[killed]]
    assert len({report["pid"] for report in reports(out)[killed]}) == 2  # another process ended it,
    assert told[0] == EVERY
    assert len(told) <= NUM_STEPS // EVERY + 1  # from its checkpoint: at most one look was taken twice
