"""benchmarks/round.py, small: the whole way from served sessions to a promoted policy, and back from a bad one."""

import sys
from pathlib import Path

import pytest

from seqroute_ray.core.registry import Registry
from seqroute_ray.retraining.state import State
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.replay_upstream import running_replay_upstream
from tests.serving.support import running_api

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # its scripts import each other as scripts do
from round import Scene, Settings, play

SMALL = {"num_sessions": 60, "num_base_sessions": 120, "num_steps": 40, "min_sessions": 3, "max_looks": 3}
LENIENT = {"min_ess": 2.0, "max_quality_loss": 3.0, "max_rise": 100.0}  # so few sessions tell nothing


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_served_sessions_become_a_policy_that_serves(tmp_path: Path) -> None:
    """Whether a bad policy is told from a good one is for the script's own size: here the way is walked."""
    settings = Settings(out=tmp_path, **SMALL, **LENIENT)  # type: ignore[arg-type]  # numbers of two kinds
    with running_replay_upstream() as upstream_url:
        scene = Scene(settings, upstream_url)
        servers = []

        def started(config: Path) -> str:
            servers.append(running_api(load_config(config)))
            return servers[0].__enter__()

        try:
            play(scene, started)
        finally:
            for server in servers:
                server.__exit__(None, None, None)
    told = [(step["code"], step.get("outcome")) for step in scene.story if step["what"] == "retrain"]
    assert told[0] == (0, "on trial"), scene.story
    assert (0, "promoted") in told, scene.story
    rounds = State.load(tmp_path / "retraining").rounds
    registry = Registry(tmp_path / "registry")
    assert registry.pointers().current == rounds[0].steps["register"]["version"]
    assert rounds[0].steps["candidate"]["start"].startswith("the network of")
    watched = rounds[0].steps["watch"]
    assert min(watched["num_canary"], watched["num_current"]) >= 3
