"""Training by two learners on two nodes, one of which dies."""

from pathlib import Path

import pytest

from seqroute_ray.core.policy import PolicyArtefact
from tests.cluster.nodes import Nodes, WorkerNode

pytestmark = pytest.mark.cluster
NUM_STEPS, EVERY = 1500, 250
FLAGS = ("--cql.num-learners", "2", "--cql.batch-size", "64", "--cql.hidden", "16", "--cql.risk-hidden", "8")
STEPS = ("--cql.num-steps", str(NUM_STEPS), "--checkpoint-every", str(EVERY), "--keep-checkpoints", "20")
LOST = (
    "1 of 2 learners are lost: a process or its node died (is memory short?); run the same command again: it goes on "
    "from its newest checkpoint"
)


def checkpoints(out: Path) -> dict[str, int]:
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.with_name("policy.checkpoints").glob("*/step-*")}


def test_training_stops_with_a_word_when_a_node_dies_and_goes_on_from_its_checkpoint(
    nodes: Nodes, workers: list[WorkerNode], toy_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy"
    words = ("train", "--dataset", toy_dataset, "--out", out, *FLAGS, *STEPS)
    with nodes.command("seqroute_ray.cli", *words) as command:
        command.until(lambda: len(checkpoints(out)) >= 2)
        for node in workers:  # each learner reads rows of its own node
            assert list(node.scratch.glob("seqroute-*/*/transitions"))
        nodes.kill(workers[1])
        stopped = command.ended()
    assert (stopped.code, stopped.stdout) == (1, "")
    assert stopped.stderr.splitlines()[-1].startswith(f"seqroute: {LOST}")
    assert not out.exists()
    before = checkpoints(out)
    assert f"step-{NUM_STEPS:09d}" not in before
    nodes.add()
    result = nodes.seqroute(*words).result
    after = checkpoints(out)
    assert {name: after[name] for name in before} == before  # none was made again
    assert len(after) == NUM_STEPS // EVERY
    assert result["num_steps"] == NUM_STEPS
    assert PolicyArtefact.load(out).version == result["policy_version"]


def test_a_node_that_falls_silent_ends_training_too(
    nodes: Nodes, workers: list[WorkerNode], toy_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy"
    with nodes.command("seqroute_ray.cli", "train", "--dataset", toy_dataset, "--out", out, *FLAGS, *STEPS) as command:
        command.until(lambda: bool(checkpoints(out)))
        nodes.freeze(workers[1])
        try:
            stopped = command.ended()
        finally:
            nodes.kill(workers[1])
    assert stopped.code == 1
    assert stopped.stderr.splitlines()[-1].startswith(f"seqroute: {LOST}")
