"""Search for settings: Ray Tune trains by each of some, ASHA stops those that fall behind on the tune part.

Every trial is a training run as `train` makes them, with checkpoints of its own: a trial whose worker dies, and a
search that is killed and started again, go on where they were. Workers train one trial after another.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import tune as ray_tune
from ray.tune import PlacementGroupFactory, Result, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.errors import ConfigError, SeqRouteError
from seqroute_ray.core.storage import absolute
from seqroute_ray.training import train as training
from seqroute_ray.training.config import CqlConfig, TrainConfig, TuneConfig
from seqroute_ray.training.cql_file import write_cql
from seqroute_ray.training.placement import WAY_OUT, in_words
from seqroute_ray.training.rllib import DiscreteCQL
from seqroute_ray.training.search_space import SEARCH_SPACE, Choice
from seqroute_ray.training.sources import open_dataset
from seqroute_ray.training.train import METRIC, Evaluate, algorithm_config

logger = logging.getLogger(__name__)
NUM_STEPS = "num_steps"
TRIALS = "trials"  # Tune's own folder in `out`
POLICIES = "policies"  # checkpoints and policies of the trials, and what the looks at them saw
BEST, RESULTS, SETTINGS = "best.json", "results.parquet", "settings.json"
FIGURES = (METRIC, "aiq_log", "quality", "cost_usd_per_turn", "bankruptcy_rate")  # of a look at the tune part
MAX_FAILURES = 3  # of a trial, each followed by another try from its last checkpoint
TUNE_SETTINGS = {  # the environment is the only way to tell Tune
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # between saves of what it knows of the search, which is what a kill loses
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints on stdout whatever `verbose` says
}

Settings = dict[str, Any]
Looks = dict[int, dict[str, float]]  # FIGURES by gradient steps
Status = Literal["waiting", "running", "finished", "stopped", "failed"]  # stopped: fell behind (ASHA)


@dataclass(frozen=True)
class TrialState:
    """One row of the table of trials."""

    trial: str
    status: Status
    settings: Settings
    num_steps: int  # gradient steps so far
    metric: float | None  # at the last look


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    best: CqlConfig
    metric: float  # the best trial's best one
    num_trials: int
    num_errors: int
    rows: list[dict[str, Any]]  # one a look of a trial at the tune part: trial, status, settings, figures


Show = Callable[[Sequence[TrialState]], None]
_show: ContextVar[Show] = ContextVar("show")  # Tune stores its callbacks with the search, and a terminal cannot be


def tune(config: TuneConfig, evaluate: Evaluate, show: Show = lambda _states: None) -> Tuned:
    """Search, or go on searching. Ray must be initialised. evaluate: see train.

    Raises ConfigError for a search that makes no sense or an `out` of another one, SeqRouteError when all trials fail.
    """
    space, resources = search_space(config), resources_of(config)
    num_concurrent = max_concurrent(config, resources.required_resources)
    searcher = _searcher(config, num_concurrent)
    _claim(config)
    config = replace(  # workers are in other folders
        config,
        dataset=absolute(config.dataset),
        tune_sessions=config.tune_sessions.absolute(),
        out=config.out.absolute(),
    )
    trials = config.out / TRIALS
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    work = ray_tune.with_resources(partial(_run_trial, config=config, evaluate=evaluate), resources)
    if ray_tune.Tuner.can_restore(str(trials)):
        tuner = ray_tune.Tuner.restore(str(trials), trainable=work, restart_errored=True, param_space=space)
        logger.info("event=search_resumed folder=%s", trials)
    else:
        tuner = ray_tune.Tuner(
            work,
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=config.num_trials,
                search_alg=searcher,
                scheduler=ASHAScheduler(
                    time_attr=NUM_STEPS,
                    max_t=config.cql.num_steps,
                    grace_period=config.grace_steps,
                    reduction_factor=config.reduction_factor,
                ),
                max_concurrent_trials=None if config.searcher == "random" else num_concurrent,
                reuse_actors=True,  # a process takes seconds to import RLlib
                trial_dirname_creator=_name,
            ),
            run_config=ray_tune.RunConfig(
                name=TRIALS,
                storage_path=str(config.out),
                failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[ShowTrials(config.cql.num_steps)],
                verbose=0,
            ),
        )
    token = _show.set(show)
    try:
        return _finish(config, tuner.fit())
    finally:
        _show.reset(token)


def search_space(config: TuneConfig) -> Settings:
    """Tune's form of what is searched. Raises ConfigError for a name that is not in SEARCH_SPACE."""
    unknown = [name for name in config.search if name not in SEARCH_SPACE]
    if unknown:
        raise ConfigError(f"search has no setting {unknown[0]!r}; there are {', '.join(SEARCH_SPACE)}")
    space: Settings = {}
    for name in config.search or SEARCH_SPACE:
        domain = SEARCH_SPACE[name]
        if isinstance(domain, Choice):  # as JSON: searchers take texts and numbers
            space[name] = ray_tune.choice([json.dumps(value) for value in domain.values])
        else:
            space[name] = (ray_tune.loguniform if domain.log else ray_tune.uniform)(domain.low, domain.high)
    return space


def settings_of(params: Settings) -> Settings:
    """A trial's values as fields of CqlConfig."""
    values = {k: json.loads(v) if isinstance(SEARCH_SPACE[k], Choice) else float(v) for k, v in params.items()}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def resources_of(config: TuneConfig) -> PlacementGroupFactory:
    """What a trial needs: a process that trains, and learners of its own if it has some. Raises DataError."""
    open_rows = partial(open_dataset, absolute(config.dataset), config.cql.sampling, config.cql.memory_mb)
    penalty = read_header(config.dataset).bankruptcy_penalty
    return DiscreteCQL.default_resource_request(algorithm_config(open_rows, config.cql, penalty))


def max_concurrent(config: TuneConfig, each: dict[str, float]) -> int:
    """Trials at a time: as many as are asked for, at most as many as the cluster has room for.

    Raises ConfigError when it has room for none: Tune would wait in silence.
    """
    total = ray.cluster_resources()
    lacking = {name: amount for name, amount in each.items() if amount > total.get(name, 0)}
    if lacking:
        has = in_words({name: total.get(name, 0) for name in lacking})
        raise ConfigError(f"a trial needs {in_words(lacking)}, the cluster has {has}; {WAY_OUT}")
    room = min(int(total[name] // amount) for name, amount in each.items())
    return min(config.max_concurrent or room, room)


def _searcher(config: TuneConfig, num_concurrent: int) -> Searcher | BasicVariantGenerator:
    if config.searcher == "random":  # heeds its own limit only
        return BasicVariantGenerator(max_concurrent=num_concurrent, random_state=config.seed)
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("searcher optuna needs a package: pip install 'seqroute-ray[optuna]'") from error
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=config.seed, metric=METRIC, mode="max")


def _claim(config: TuneConfig) -> None:
    """Make `out` this search's folder. Raises ConfigError when another one is there."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "resume")}
    text = json.dumps(settings, indent=1, default=str)
    mark = config.out / SETTINGS
    if mark.exists() and not config.resume:
        for name in (TRIALS, POLICIES):
            shutil.rmtree(config.out / name, ignore_errors=True)
    elif mark.exists() and mark.read_text() != text:
        raise ConfigError(f"{config.out}: holds a search of other settings; choose another --out, or --no-resume")
    config.out.mkdir(parents=True, exist_ok=True)
    mark.write_text(text)


def _name(trial: Trial) -> str:
    """Of a trial's folder, and so of its line in TensorBoard."""
    return str(trial.trial_id)


def _run_trial(params: Settings, *, config: TuneConfig, evaluate: Evaluate) -> None:
    """One trial, in a worker that had others before."""
    trial = ray_tune.get_context().get_trial_id()
    folder, looks = config.out / POLICIES / trial, _read_looks(config, trial)
    num_before = len(looks)

    def report(done: int, _total: int, figures: dict[str, float]) -> None:
        if METRIC in figures:
            looks[done] = {name: figures[name] for name in FIGURES if name in figures}
            _write_looks(config, trial, looks)
            ray_tune.report({NUM_STEPS: done, **looks[done]})

    training.train(
        TrainConfig(
            dataset=config.dataset,
            out=folder,
            cql=replace(config.cql, **settings_of(params)),
            tune_sessions=config.tune_sessions,
            checkpoint_every=config.judge_every,
            keep_checkpoints=1,
        ),
        report,
        evaluate,
    )
    if len(looks) == num_before:  # it was at its end when it was killed
        ray_tune.report({NUM_STEPS: max(looks), **looks[max(looks)]})


def _read_looks(config: TuneConfig, trial: str) -> Looks:
    """What was seen of a trial so far. Tune's own files lag behind, and a kill would lose looks."""
    path = config.out / POLICIES / f"{trial}.looks.json"
    return {int(done): figures for done, figures in json.loads(path.read_text()).items()} if path.exists() else {}


def _write_looks(config: TuneConfig, trial: str, looks: Looks) -> None:
    path = config.out / POLICIES / f"{trial}.looks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(looks))
    unfinished.rename(path)


class ShowTrials(ray_tune.Callback):
    """Tells of the trials whenever one of them says something."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def on_trial_start(self, **event: Any) -> None:
        _show.get()([_state(trial, self._num_steps) for trial in event["trials"]])

    on_trial_result = on_trial_complete = on_trial_error = on_experiment_end = on_trial_start


def _state(trial: Trial, num_steps: int) -> TrialState:
    done = int(trial.last_result.get(NUM_STEPS, 0))
    status: dict[str, Status] = {"RUNNING": "running", "ERROR": "failed", "TERMINATED": _ended(done, num_steps)}
    return TrialState(
        trial=trial.trial_id,
        status=status.get(trial.status, "waiting"),
        settings=settings_of(trial.config),
        num_steps=done,
        metric=trial.last_result.get(METRIC),
    )


def _ended(done: int, num_steps: int) -> Status:
    return "finished" if done >= num_steps else "stopped"


def _finish(config: TuneConfig, results: ResultGrid) -> Tuned:
    """Write best.json and results.parquet. Raises SeqRouteError when no trial was ever judged."""
    rows = [row for result in results for row in _rows(config, result)]
    rows.sort(key=lambda row: (row["trial"], row[NUM_STEPS]))  # a restart changes Tune's own order
    if not rows:
        first = next((str(result.error) for result in results if result.error), "no trial came to a look")
        raise SeqRouteError(f"{config.out}: every trial failed; the first: {' '.join(first.split())[-300:]}")
    top = max(rows, key=lambda row: row[METRIC])
    params = next(result.config for result in results if _trial_of(result) == top["trial"])
    best = replace(config.cql, **settings_of(params))
    pq.write_table(pa.Table.from_pylist(rows), config.out / RESULTS)
    write_cql(best, config.out / BEST)
    logger.info("event=tuned out=%s %s=%.4f", config.out, METRIC, top[METRIC])
    return Tuned(best, top[METRIC], len(results), results.num_errors, rows)


def _rows(config: TuneConfig, result: Result) -> list[dict[str, Any]]:
    trial = _trial_of(result)
    looks = _read_looks(config, trial)
    status = "failed" if result.error else _ended(max(looks, default=0), config.cql.num_steps)
    settings = {name: _cell(value) for name, value in settings_of(result.config).items()}
    return [
        {"trial": trial, "status": status, **settings, NUM_STEPS: done, **figures}
        for done, figures in sorted(looks.items())
    ]


def _trial_of(result: Result) -> str:
    return Path(result.path).name  # see _name


def _cell(value: Any) -> Any:
    """Widths as a text: one column holds one type."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else value
