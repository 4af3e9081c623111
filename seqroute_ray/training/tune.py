"""Search for settings: Ray Tune trains by each of some, ASHA stops those that fall behind on the tune part.

Every trial is a training run as `train` makes them, with checkpoints of its own: a trial whose worker dies, and a
search that is killed and started again, go on where they were. Workers train one trial after another.
"""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from seqroute_ray.training.config import CqlConfig, TuneConfig
from seqroute_ray.training.cql_file import write_cql
from seqroute_ray.training.placement import WAY_OUT, in_words
from seqroute_ray.training.rllib import DiscreteCQL
from seqroute_ray.training.search_space import SEARCH_SPACE, Choice
from seqroute_ray.training.sources import open_dataset
from seqroute_ray.training.train import METRIC, Evaluate, algorithm_config
from seqroute_ray.training.trial import NUM_STEPS, POLICIES, Settings, read_looks, run_trial, settings_of
from seqroute_ray.training.trial_states import Show, ShowTrials, listener, status_at_end

logger = logging.getLogger(__name__)
TRIALS = "trials"  # Tune's own folder in `out`
BEST, RESULTS, SETTINGS = "best.json", "results.parquet", "settings.json"
MAX_FAILURES = 3  # of a trial, each followed by another try from its last checkpoint
TUNE_SETTINGS = {  # the environment is the only way to tell Tune
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # between saves of what it knows of the search, which is what a kill loses
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints on stdout whatever `verbose` says
}


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    best: CqlConfig
    metric: float  # the best trial's best one
    num_trials: int
    num_errors: int
    rows: list[dict[str, Any]]  # one a look of a trial at the tune part: trial, status, settings, figures


def tune(config: TuneConfig, evaluate: Evaluate, show: Show = lambda _states: None) -> Tuned:
    """Search, or go on searching. Ray must be initialised. evaluate: see train.

    Raises ConfigError for a search that makes no sense or an `out` of another one, SeqRouteError when all trials fail.
    """
    space, resources = search_space(config), resources_of(config)
    num_concurrent = max_concurrent(config, resources.required_resources)
    _quiet_optuna(config)
    _claim(config)
    config = replace(  # workers are in other folders
        config,
        dataset=absolute(config.dataset),
        tune_sessions=config.tune_sessions.absolute(),
        out=config.out.absolute(),
    )
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    work = ray_tune.with_resources(partial(run_trial, config=config, evaluate=evaluate), resources)
    trials = str(config.out / TRIALS)
    if ray_tune.Tuner.can_restore(trials):
        tuner = ray_tune.Tuner.restore(trials, trainable=work, restart_errored=True, param_space=space)
        logger.info("event=search_resumed folder=%s", trials)
    else:
        tuner = _new_tuner(config, work, space, num_concurrent)
    token = listener.set(show)
    try:
        return _finish(config, tuner.fit())
    finally:
        listener.reset(token)


def _new_tuner(config: TuneConfig, work: Any, space: Settings, num_concurrent: int) -> ray_tune.Tuner:
    scheduler = ASHAScheduler(
        time_attr=NUM_STEPS,
        max_t=config.cql.num_steps,
        grace_period=config.grace_steps,
        reduction_factor=config.reduction_factor,
    )
    search = ray_tune.TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=config.num_trials,
        search_alg=_searcher(config, num_concurrent),
        scheduler=scheduler,
        max_concurrent_trials=None if config.searcher == "random" else num_concurrent,
        reuse_actors=True,  # a process takes seconds to import RLlib
        trial_dirname_creator=_name,
    )
    run = ray_tune.RunConfig(
        name=TRIALS,
        storage_path=str(config.out),
        failure_config=ray_tune.FailureConfig(max_failures=MAX_FAILURES),
        callbacks=[ShowTrials(config.cql.num_steps)],
        verbose=0,
    )
    return ray_tune.Tuner(work, param_space=space, tune_config=search, run_config=run)


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
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=config.seed, metric=METRIC, mode="max")


def _quiet_optuna(config: TuneConfig) -> None:
    """Raises ConfigError when it is asked for and not installed."""
    if config.searcher != "optuna":
        return
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("searcher optuna needs a package: pip install 'seqroute-ray[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    looks = read_looks(config, trial)
    status = "failed" if result.error else status_at_end(max(looks, default=0), config.cql.num_steps)
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
