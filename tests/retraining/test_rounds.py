"""Rounds of retraining on a real ledger and a real registry; the policy is given, but for one test that trains."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.core.locks import only_one
from seqroute_ray.core.registry import Registry
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.retraining.rounds import STEPS, GateError, retrain
from seqroute_ray.retraining.state import LOCK, STATE, State, Step
from seqroute_ray.training.config import CqlConfig
from tests.retraining.support import LENIENT_GATE, candidate_in, config_for, registry_with, serve, session_names
from tests.support import MEAN_COST_USD, make_artefact

CONFIGS = {"mean_cost_usd": [MEAN_COST_USD] * 2, "estimator": asdict(EstimatorConfig())}
CURRENT = make_artefact(seed=0, configs=CONFIGS)
STRICT = replace(LENIENT_GATE, min_sessions=10_000)


@pytest.fixture
def names() -> Iterator[str]:
    return session_names()


@pytest.fixture
def folder(tmp_path: Path, names: Iterator[str]) -> Path:
    """A registry whose current version has served 40 sessions, and a candidate."""
    registry_with(tmp_path, CURRENT)
    candidate_in(tmp_path)
    serve(tmp_path, names, CURRENT.version)
    return tmp_path


def last_round(folder: Path) -> dict[str, Step]:
    last = State.load(folder / "retraining").last
    assert last is not None
    return last.steps


def test_a_round_ends_in_a_canary_and_the_next_look_promotes_it(folder: Path, names: Iterator[str]) -> None:
    config, registry = config_for(folder), Registry(folder / "registry")
    first = retrain(config)
    assert first["outcome"] == "on trial"
    assert (registry.pointers().canary, registry.pointers().canary_share) == (first["version"], 0.2)
    waits = retrain(config)
    assert (waits["round"], waits["outcome"]) == (1, "on trial")
    assert "0 canary and 0 current sessions" in waits["why"]
    serve(folder, names, CURRENT.version)
    serve(folder, names, make_artefact(seed=1).version)
    assert retrain(config)["outcome"] == "promoted"
    assert registry.pointers().current == first["version"]
    card = registry.card(first["version"])
    assert card.metrics["gate"]["passed"]
    assert card.parent == registry.pointers().previous[-1]


def test_a_canary_that_is_worse_is_rolled_back(folder: Path, names: Iterator[str]) -> None:
    config, registry = config_for(folder), Registry(folder / "registry")
    current = registry.pointers().current
    retrain(config)
    serve(folder, names, CURRENT.version, quality=0.6)
    serve(folder, names, make_artefact(seed=1).version, quality=0.4)
    result = retrain(config)
    assert result["outcome"] == "rolled_back"
    assert "worse: quality" in result["why"]
    assert (registry.pointers().current, registry.pointers().canary) == (current, "")
    report = Path(result["report"]).read_text()
    assert "Rolled back: the current policy serves all sessions. Worse: quality" in report


def test_a_refused_policy_is_an_error_twice_and_can_be_forced(folder: Path) -> None:
    config = config_for(folder, gate=STRICT)
    for _ in range(2):
        with pytest.raises(GateError, match=r"refused the new policy \(sessions: .*report\.md"):
            retrain(config)
    assert len(State.load(config.out).rounds) == 1
    assert Registry(folder / "registry").pointers().canary == ""
    assert retrain(replace(config, force=True))["why"] == "forced"
    assert Registry(folder / "registry").pointers().canary
    assert len(State.load(config.out).rounds) == 1


def test_a_second_submit_finds_the_result_and_new_sessions_begin_a_round(folder: Path, names: Iterator[str]) -> None:
    """The second round exports what is new alone, and a session that went on in place of its older rows."""
    config = config_for(folder, gate=STRICT)
    with pytest.raises(GateError):
        retrain(config)
    serve(folder, names, CURRENT.version, num_sessions=5)
    serve(folder, iter(["s0000"]), CURRENT.version, num_sessions=1)  # its turns 0 and 1 are there: these are 2 and 3
    with pytest.raises(GateError, match="round 2"):
        retrain(config)
    steps = State.load(config.out).rounds[1].steps
    assert (steps["import"]["num_new_sessions"], steps["import"]["num_sessions"]) == (6, 45)
    sessions = read_sessions(config.out / "round-0002" / "sessions.parquet")
    lengths = dict(zip(sessions.session_id.tolist(), sessions.num_turns.tolist(), strict=True))
    assert (lengths["s0000"], lengths["s0001"]) == (4, 2)


def test_other_settings_are_another_round_on_the_same_data(folder: Path) -> None:
    with pytest.raises(GateError):
        retrain(config_for(folder, gate=STRICT))
    assert retrain(config_for(folder))["round"] == 2
    steps = last_round(folder)
    assert steps["import"]["num_sessions"] == 40


def test_a_kill_at_the_end_of_any_step_loses_that_step_alone(folder: Path) -> None:
    root = Path(__file__).parent.parent.parent
    for number, step in enumerate(STEPS[:-1]):
        command = [sys.executable, "-m", "tests.retraining.kill_retrain", str(folder), step]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(last_round(folder)) == list(STEPS[:number])
    result = retrain(config_for(folder))
    registry = Registry(folder / "registry")
    assert (result["round"], result["outcome"]) == (1, "on trial")
    assert [card.version for card in registry.cards()] == [registry.pointers().current, result["version"]]
    assert registry.pointers().number == 2  # the canary was started once


def test_sigterm_leaves_a_state_to_go_on_with(folder: Path) -> None:
    flags = ["--registry", "registry", "--out", "retraining", "--ledger", "ledger.sqlite", "--candidate", "candidate"]
    command = [sys.executable, "-m", "seqroute_ray.cli", "retrain", *flags, "--test-share", "0.5", "--runner", "local"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "retraining" / STATE).exists() and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, error = process.communicate()
    assert process.returncode == 1
    assert "seqroute: interrupted" in error
    assert len(State.load(folder / "retraining").rounds) == 1
    assert retrain(config_for(folder))["outcome"] == "on trial"


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(path for path in folder.rglob("*") if "sqlite" not in path.name)
    planned = retrain(config_for(folder, dry_run=True))
    assert (planned["to_do"], planned["num_changed_sessions"]) == (list(STEPS), 40)
    assert sorted(path for path in folder.rglob("*") if "sqlite" not in path.name) == before


def test_one_invocation_at_a_time(folder: Path) -> None:
    config = config_for(folder)
    with only_one(config.out / LOCK, wait=False), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        retrain(config)


def test_a_model_leaves_and_joins_the_pool_through_the_gate(folder: Path) -> None:
    without = config_for(folder, candidate=None, remove_model="model-1")
    registry, version = Registry(folder / "registry"), str(retrain(without)["version"])
    assert registry.load(version).catalog.names == ("model-0",)
    registry.promote(version)
    retrain(without)
    catalog = folder / "catalog.json"
    catalog.write_text(json.dumps(make_artefact().catalog.to_json()))
    back = config_for(folder, candidate=None, add_model="model-1", catalog=catalog)
    again = registry.load(str(retrain(back)["version"]))
    assert again.catalog.names == ("model-0", "model-1")
    assert last_round(folder)["candidate"]["num_observed_turns"] > 20


BROKEN: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"ledger": None}, ConfigError, "nothing to learn from"),
    ({"test_share": 1.0}, ConfigError, r"test_share must be in \(0, 1\)"),
    ({"remove_model": "m"}, ConfigError, "a round makes one policy"),
    ({"candidate": None, "add_model": "m"}, ConfigError, "needs --catalog"),
]


@pytest.mark.parametrize(("fields", "error", "message"), BROKEN)
def test_settings_that_make_no_sense_are_refused(
    fields: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        config_for(tmp_path, **fields)


def test_a_registry_without_a_current_version_and_a_ledger_without_news_are_refused(folder: Path) -> None:
    config = config_for(folder, registry=str(folder / "nobody"))
    with pytest.raises(ConfigError, match="no version is current"):
        retrain(config)
    empty = config_for(folder, ledger=str(folder / "empty.sqlite"), out=folder / "other")
    with pytest.raises(ConfigError, match="no such file"):
        retrain(empty)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_training_starts_from_the_current_network_or_says_why_it_cannot(folder: Path, names: Iterator[str]) -> None:
    serve(folder, names, CURRENT.version, num_sessions=80)
    config: RetrainConfig = config_for(
        folder, candidate=None, cql=CqlConfig(num_steps=20, batch_size=16, hidden=(8,), risk_hidden=(8,))
    )
    assert retrain(config)["outcome"] == "on trial"
    made = last_round(folder)["candidate"]
    assert made["made"] == "trained"
    assert "entries of context" in made["start"]  # this log names no types of task
    policy = Registry(folder / "registry").load(Registry(folder / "registry").pointers().canary)
    assert policy.risk == CURRENT.risk


def test_a_damaged_state_is_named(folder: Path) -> None:
    (folder / "retraining").mkdir()
    (folder / "retraining" / STATE).write_text("{")
    with pytest.raises(DataError, match=r"state\.json: is damaged"):
        retrain(config_for(folder))
