"""The search for settings: what it tries, stops, keeps and finds again after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray import stages
from seqroute_ray.core.errors import ConfigError, SeqRouteError
from seqroute_ray.core.policy import QNetwork
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig, TuneConfig
from seqroute_ray.training.cql_file import read_cql, with_file, write_cql
from seqroute_ray.training.search_space import SEARCH_SPACE, Choice
from seqroute_ray.training.trial import settings_of
from seqroute_ray.training.trial_states import TrialState
from seqroute_ray.training.tune import max_concurrent, resources_of, tune

ROOT = Path(__file__).parent.parent.parent
CQL = CqlConfig(num_steps=500, batch_size=128)
NUM_TRIALS = 3


def config_of(dataset: Path | str, tune_sessions: Path, out: Path, **fields: Any) -> TuneConfig:
    """One trial after another, so that what happens depends on the seed alone."""
    given = {"num_trials": NUM_TRIALS, "max_concurrent": 1, "search": ("hidden", "lr")}
    steps = {"cql": CQL, "judge_every": 250, "grace_steps": 250}
    return TuneConfig(dataset=dataset, tune_sessions=tune_sessions, out=out, **{**given, **steps, **fields})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_best_settings_train_alone_to_what_they_came_to_in_the_search(
    toy_dataset: RelabelReport,
    toy_tune_sessions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative path means the same in every worker
    config = config_of(toy_dataset.out, toy_tune_sessions, Path("t"))
    result = stages.tune(config)
    assert capfd.readouterr().out == ""  # stdout is for the JSON line
    assert (result["num_trials"], result["num_errors"]) == (NUM_TRIALS, 0)
    looks = pq.read_table(result["results_parquet"]).to_pylist()
    trials = sorted({look["trial"]: look for look in looks})
    assert len(trials) == NUM_TRIALS
    assert len({(look["trial"], look["num_steps"]) for look in looks}) == len(looks)
    for look in looks:
        last = max(other["num_steps"] for other in looks if other["trial"] == look["trial"])
        assert look["status"] == {250: "stopped", 500: "finished"}[last]
    assert {path.parent.name for path in (tmp_path / "t").rglob("events.out.tfevents.*")} == set(trials)
    assert {path.name.split(".")[0] for path in Path("t/policies").iterdir()} <= set(trials)
    assert "AIQ against each setting" in Path(result["report_html"]).read_text()

    top = max(looks, key=lambda look: look["aiq"])
    best = read_cql(Path(result["best_json"]))
    assert best == replace(CQL, hidden=tuple(map(int, top["hidden"].split("-"))), lr=top["lr"])
    # The worker that trained the best settings had others before: nothing of them is left.
    assert not top["trial"].endswith("_00000")
    alone = TrainConfig(
        dataset=toy_dataset.out,
        out=Path("p"),
        config=Path(result["best_json"]),
        tune_sessions=toy_tune_sessions,
        checkpoint_every=250,
    )
    assert stages.train(alone)["aiq"] == result["aiq"] == top["aiq"]


def wider_is_better(network: QNetwork) -> dict[str, float]:
    """A stand-in for the tune part, so that who must be stopped is known."""
    return {"aiq": float(network.quality.layers[0][0].shape[1])}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_optuna_that_fall_behind_are_stopped_early(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    seen: list[Sequence[TrialState]] = []
    fields: dict[str, Any] = {"searcher": "optuna", "search": ("hidden",), "reduction_factor": 2, "seed": 1}
    config = config_of(toy_dataset.out, tmp_path, tmp_path / "t", **fields)
    tuned = tune(config, wider_is_better, seen.append)
    widths = [state.settings["hidden"][0] for state in seen[-1]]
    # The rule of ASHA: who is under the median of those that came to 250 steps before ends there.
    ends = [500, *(250 if widths[i] < np.median(widths[:i]) else 500 for i in range(1, len(widths)))]
    assert {*ends} == {250, 500}  # or the seed draws no case to see it in
    assert [(state.num_steps, state.status) for state in seen[-1]] == [
        (end, "stopped" if end == 250 else "finished") for end in ends
    ]
    assert tuned.metric == max(widths)


def config_to_kill(dataset: Path | str, tune_sessions: Path, out: Path) -> TuneConfig:
    """Every trial looks at 250 and at 500 steps before it can be stopped."""
    return config_of(dataset, tune_sessions, out, cql=replace(CQL, num_steps=750), grace_steps=500)


def checkpoint_times(out: Path, trial: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "policies" / f"{trial}.checkpoints").rglob("step-*")}


@pytest.mark.ray
def test_a_killed_search_goes_on_where_it_was(
    toy_dataset: RelabelReport, toy_tune_sessions: Path, tmp_path: Path, ray_cluster: str
) -> None:
    out = tmp_path / "t"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_tune", str(toy_dataset.out), str(toy_tune_sessions), str(out)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "best.json").exists()
    first, second = sorted(path.name.split(".")[0] for path in (out / "trials").iterdir() if path.is_dir())
    before = checkpoint_times(out, first)
    assert before  # the first trial had ended; the second had looked twice
    looks = json.loads((out / "policies" / f"{second}.looks.json").read_text())
    assert set(looks) >= {"250", "500"}  # a worker lives on a little without its search
    killed_at = int(time.time())
    seen: list[Sequence[TrialState]] = []
    config = config_to_kill(toy_dataset.out, toy_tune_sessions, out)
    tuned = tune(config, stages.tune_part(config.dataset, toy_tune_sessions), seen.append)
    assert checkpoint_times(out, first) == before
    lines = [json.loads(line) for line in (out / "trials" / second / "result.json").open()]
    later = [line["num_steps"] for line in lines if line["timestamp"] > killed_at]
    assert later
    assert 250 not in later  # from a checkpoint, not from the start
    kept = {str(row["num_steps"]): row["aiq"] for row in tuned.rows if row["trial"] == second}
    assert kept.items() >= {steps: figures["aiq"] for steps, figures in looks.items()}.items()
    trials = {state.trial for state in seen[-1]}
    assert {first, second} < trials == {row["trial"] for row in tuned.rows}
    assert (tuned.num_trials, tuned.num_errors, len(trials)) == (NUM_TRIALS, 0, NUM_TRIALS)
    assert len({(row["trial"], row["num_steps"]) for row in tuned.rows}) == len(tuned.rows)
    again = tune(config, fails)  # all is done: nothing is trained
    assert (again.best, again.rows) == (tuned.best, tuned.rows)
    with pytest.raises(ConfigError, match="holds a search of other settings; choose another --out, or --no-resume"):
        tune(replace(config, seed=1), fails)


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
        (
            {"max_concurrent": 0},
            "max_concurrent must be at least 1, got 0; leave it out for all there is room for",
        ),
        ({"grace_steps": 501}, "grace_steps 501 is more than cql.num_steps 500: no trial could be stopped; lower it"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(fields: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, tmp_path, tmp_path, **fields)
    assert str(caught.value) == words


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_would_wait_for_ever_is_refused_before_the_search(
    toy_dataset: RelabelReport, tmp_path: Path
) -> None:
    config = config_of(toy_dataset.out, tmp_path, tmp_path / "t", max_concurrent=None)
    each = {learners: replace(config, cql=replace(CQL, num_learners=learners)) for learners in (0, 1, 4)}
    room = {n: max_concurrent(one, resources_of(one).required_resources) for n, one in each.items() if n < 4}
    assert room == {0: 4, 1: 2}  # of 4 CPUs
    words = r"a trial needs 5 CPU, the cluster has 4 CPU; lower num_learners or num_gpus_per_learner, or add nodes"
    with pytest.raises(ConfigError, match=words):
        tune(each[4], fails)
    gpu = replace(config, cql=replace(CQL, num_gpus_per_learner=1))
    with pytest.raises(ConfigError, match="a trial needs 1 GPU, the cluster has 0 GPU"):
        tune(gpu, fails)
    assert not (tmp_path / "t").exists()


def test_a_setting_that_is_not_searched_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search has no setting 'gama'; there are cql_alpha, lr"):
        tune(config_of(tmp_path, tmp_path, tmp_path / "t", search=("gama",)), fails)
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
            ends: tuple[Any, ...] = (domain.low, domain.high)
            for end in ends:
                replace(CqlConfig(), **{name: end})


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
