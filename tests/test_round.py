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

# So few sessions tell nothing: a gate and a canary that take what is not absurd.
LENIENT = {"min_ess": 2.0, "max_quality_loss": 9.0, "max_rate_rise": 9.0, "max_cost_rise": 900.0}
SMALL = {"num_sessions": 100, "num_base_sessions": 200, "max_turns": 1, "num_steps": 20, "min_sessions": 3}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_served_sessions_become_a_policy_that_serves(tmp_path: Path) -> None:
    """Whether a bad policy is told from a good one is for the script's own size: here the way is walked."""
    settings = Settings(out=tmp_path, epsilon=0.5, share=0.4, test_share=0.5, **SMALL, **LENIENT)  # type: ignore[arg-type]
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
    rounds = State.load(tmp_path / "retraining").rounds
    pointers = Registry(tmp_path / "registry").pointers()
    version = rounds[0].steps["register"]["version"]
    assert rounds[0].outcome in ("promoted", "rolled_back"), scene.story  # a worse one by chance is 1 of 40
    assert (version in (pointers.current, *pointers.previous)) == (rounds[0].outcome == "promoted")
    assert rounds[0].steps["candidate"]["start"].startswith("the network of")
    watched = rounds[0].steps["watch"]
    assert min(watched["num_canary"], watched["num_current"]) >= 3
