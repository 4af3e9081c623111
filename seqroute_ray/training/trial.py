"""One trial of a search: a training run whose looks at the tune part are told to Ray Tune, and kept."""

import json
from dataclasses import replace
from typing import Any

from ray import tune as ray_tune

from seqroute_ray.training import train as training
from seqroute_ray.training.config import TrainConfig, TuneConfig
from seqroute_ray.training.search_space import SEARCH_SPACE, Choice
from seqroute_ray.training.train import METRIC, Evaluate

NUM_STEPS = "num_steps"
POLICIES = "policies"  # folder in `out`: checkpoints and policies of the trials, and what the looks at them saw
FIGURES = (METRIC, "aiq_log", "quality", "cost_usd_per_turn", "bankruptcy_rate")  # of a look at the tune part

Settings = dict[str, Any]
Looks = dict[int, dict[str, float]]  # FIGURES by gradient steps


def settings_of(params: Settings) -> Settings:
    """A trial's values as fields of CqlConfig."""
    values = {k: json.loads(v) if isinstance(SEARCH_SPACE[k], Choice) else float(v) for k, v in params.items()}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def run_trial(params: Settings, *, config: TuneConfig, evaluate: Evaluate) -> None:
    """One trial, in a worker that had others before."""
    trial = ray_tune.get_context().get_trial_id()
    folder, looks = config.out / POLICIES / trial, read_looks(config, trial)
    reported = False

    def report(done: int, _total: int, figures: dict[str, float]) -> None:
        nonlocal reported
        if METRIC in figures:
            reported = True
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
    if not reported:  # it was at its end when it was killed
        ray_tune.report({NUM_STEPS: max(looks), **looks[max(looks)]})


def read_looks(config: TuneConfig, trial: str) -> Looks:
    """What was seen of a trial so far. Tune's own files lag behind, and a kill would lose looks."""
    path = config.out / POLICIES / f"{trial}.looks.json"
    return {int(done): figures for done, figures in json.loads(path.read_text()).items()} if path.exists() else {}


def _write_looks(config: TuneConfig, trial: str, looks: Looks) -> None:
    path = config.out / POLICIES / f"{trial}.looks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(looks))
    unfinished.rename(path)
