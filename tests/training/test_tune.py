"""The search for settings: what it tries, stops, keeps and finds again after a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from seqroute_ray import stages
from seqroute_ray.core.errors import ConfigError, SeqRouteError
from seqroute_ray.core.policy import QNetwork
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig, TuneConfig
from seqroute_ray.training.cql_file import read_cql, with_file, write_cql
from seqroute_ray.training.search_space import SEARCH_SPACE, Choice
from seqroute_ray.training.tune import TrialState, settings_of, tune

ROOT = Path(__file__).parent.parent.parent
CQL = CqlConfig(num_steps=500)
NUM_TRIALS = 4


def config_of(dataset: Path | str, tune_sessions: Path, out: Path, **fields: Any) -> TuneConfig:
    given = {"cql": CQL, "num_trials": NUM_TRIALS, "judge_every": 250, "grace_steps": 250, "max_concurrent": 2}
    return TuneConfig(dataset=dataset, tune_sessions=tune_sessions, out=out, **{**given, **fields})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_the_best_settings_can_be_trained_and_every_look_is_in_the_results(
    searcher: str, toy_dataset: RelabelReport, toy_tune_sessions: Path, tmp_path: Path
) -> None:
    config = config_of(toy_dataset.out, toy_tune_sessions, tmp_path / "t", searcher=searcher)
    result = stages.tune(config)
    assert (result["num_trials"], result["num_errors"]) == (NUM_TRIALS, 0)
    looks = pq.read_table(result["results_parquet"]).to_pylist()
    assert len({look["trial"] for look in looks}) == NUM_TRIALS
    assert {look["num_steps"] for look in looks} == {250, 500}
    top = max(looks, key=lambda look: look["aiq"])
    assert result["aiq"] == top["aiq"]
    best = read_cql(Path(result["best_json"]))
    for name, value in asdict(best).items():
        if name in SEARCH_SPACE:
            assert top[name] == ("-".join(map(str, value)) if isinstance(value, tuple) else value), name
        else:
            assert value == getattr(CQL, name), name
    assert "AIQ against each setting" in Path(result["report_html"]).read_text()
    assert len(list((tmp_path / "t").rglob("events.out.tfevents.*"))) == NUM_TRIALS
    trained = stages.train(
        TrainConfig(dataset=toy_dataset.out, out=tmp_path / "p", config=Path(result["best_json"]), checkpoint_every=250)
    )
    assert trained["num_steps"] == CQL.num_steps


def falls_behind(network: QNetwork) -> dict[str, float]:
    """Wider networks are better: a stand-in for the tune part, so that who must be stopped is known."""
    return {"aiq": float(network.quality.layers[0][0].shape[1])}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_that_fall_behind_are_stopped_early(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    seen: list[Sequence[TrialState]] = []
    config = config_of(
        toy_dataset.out,
        tmp_path,
        tmp_path / "t",
        search=("hidden",),
        num_trials=6,
        max_concurrent=1,
        reduction_factor=2,
    )
    tuned = tune(config, falls_behind, seen.append)
    assert tuned.best == replace(CQL, hidden=(128, 128))
    steps = {state.settings["hidden"]: state.num_steps for state in seen[-1]}
    assert steps[(128, 128)] == 500
    assert min(steps.values()) == 250
    assert {state.status for state in seen[-1]} == {"TERMINATED"}


@pytest.mark.ray
def test_a_killed_search_goes_on_where_it_was(
    toy_dataset: RelabelReport, toy_tune_sessions: Path, tmp_path: Path, ray_cluster: str
) -> None:
    out = tmp_path / "t"
    command = [sys.executable, "-m", "tests.training.kill_tune"]
    killed = subprocess.run(
        [*command, str(toy_dataset.out), str(toy_tune_sessions), str(out), "2"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "best.json").exists()
    before = {path.name for path in (out / "policies").iterdir()}
    states: list[Sequence[TrialState]] = []
    config = config_of(toy_dataset.out, toy_tune_sessions, out)
    tuned = tune(config, stages.tune_part(config.dataset, toy_tune_sessions), states.append)
    assert tuned.num_trials == len({row["trial"] for row in tuned.rows}) == NUM_TRIALS
    assert tuned.num_errors == 0
    assert {row["trial"] for row in tuned.rows} & {name.removesuffix(".checkpoints") for name in before}
    assert (out / "best.json").exists()
    with pytest.raises(ConfigError, match="holds a search of other settings; choose another --out, or --no-resume"):
        tune(replace(config, seed=1), falls_behind)


def fails(_network: QNetwork) -> dict[str, float]:
    raise ZeroDivisionError("no way")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_whose_trials_all_fail_says_why(
    toy_dataset: RelabelReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqroute_ray.training.tune.MAX_FAILURES", 0)
    with pytest.raises(SeqRouteError, match=r"t: every trial failed; the first: .*no way"):
        tune(config_of(toy_dataset.out, tmp_path, tmp_path / "t", num_trials=1), fails)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_trials": 0}, "num_trials must be at least 1, got 0"),
        ({"reduction_factor": 1}, "reduction_factor must be at least 2, got 1"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1, got 0; leave it out for all CPUs"),
        ({"grace_steps": 501}, "grace_steps 501 is more than cql.num_steps 500: no trial could be stopped; lower it"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(fields: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, tmp_path, tmp_path, **fields)
    assert str(caught.value) == words


def test_a_setting_that_is_not_searched_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search has no setting 'gama'; there are cql_alpha, lr"):
        tune(config_of(tmp_path, tmp_path, tmp_path / "t", search=("gama",)), falls_behind)
    assert not (tmp_path / "t").exists()


def test_every_searched_setting_is_one_of_training_and_holds_its_default() -> None:
    for name, domain in SEARCH_SPACE.items():
        default = getattr(CqlConfig(), name)
        if isinstance(domain, Choice):
            assert default in domain.values
            assert settings_of({name: json.dumps(default)}) == {name: default}
            for value in domain.values:
                replace(CqlConfig(), **{name: value})
        else:
            assert domain.low <= default <= domain.high
            for value in (domain.low, domain.high):
                replace(CqlConfig(), **{name: value})


def test_settings_go_through_their_file_and_flags_beside_it_are_refused(tmp_path: Path) -> None:
    path, cql = tmp_path / "best.json", replace(CQL, hidden=(8, 4), lr=0.5)
    write_cql(cql, path)
    config = TrainConfig(dataset="d", out=tmp_path, config=path)
    assert with_file(config) == TrainConfig(dataset="d", out=tmp_path, cql=cql)
    with pytest.raises(ConfigError, match=r"--config .*best.json and --cql flags contradict each other; give one"):
        with_file(replace(config, cql=CQL))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable settings"),
        ("[]", "settings are a JSON object, got a list"),
        ('{"alpha": 1}', "no setting is called 'alpha'"),
        ('{"lr": -1}', "lr must be > 0, got -1"),
        ('{"lr": "fast"}', "a setting is of a wrong type"),
    ],
)
def test_a_wrong_settings_file_is_refused_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_cql(path)
    assert "\n" not in str(caught.value)
