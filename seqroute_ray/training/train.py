"""Train a policy from a relabeled dataset and write it as an artefact."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS

from seqroute_ray.core.dataset import DatasetHeader, read_header
from seqroute_ray.core.policy import PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.storage import absolute
from seqroute_ray.training.checkpoints import Checkpoints
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.ensemble import Ensemble, mean_network
from seqroute_ray.training.learner import BANKRUPTCY_LOSS, CONSERVATIVE_LOSS, Q_GAP, Q_MEAN, QUALITY_LOSS
from seqroute_ray.training.reader import BatchSource
from seqroute_ray.training.rllib import DiscreteCQL, DiscreteCQLConfig
from seqroute_ray.training.sources import open_dataset
from seqroute_ray.training.warm_start import start_from

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, losses)
Evaluate = Callable[[QNetwork], dict[str, float]]  # figures on the tune part, METRIC among them
SHOWN = (QUALITY_LOSS, BANKRUPTCY_LOSS, CONSERVATIVE_LOSS, Q_MEAN, Q_GAP)
STEPS_PER_ITERATION = 250  # learning-rate and progress granularity
TUNE_PART = "tune_part"  # where an iteration's result holds the figures of Evaluate
METRIC = "aiq"  # what tells the best checkpoint


@dataclass(frozen=True)
class Trained:
    """What a run made."""

    artefact: PolicyArtefact
    num_steps: int  # gradient steps of the checkpoint that became the policy
    checkpoints: Checkpoints
    metrics: dict[str, float]  # of that checkpoint on the tune part


def train(
    config: TrainConfig,
    progress: Progress = lambda _done, _total, _losses: None,
    evaluate: Evaluate | None = None,
) -> Trained:
    """Train, or go on from a checkpoint, and save. Ray must be initialised.

    evaluate: called at every checkpoint, and the checkpoint of the highest METRIC becomes the policy; it judges by
    config.tune_sessions. Raises DataError, ConfigError.
    """
    header = read_header(config.dataset)
    checkpoints = checkpoints_of(config, header)
    if not config.resume:
        checkpoints.delete()
    open_rows = partial(open_dataset, absolute(config.dataset), config.cql.sampling, config.cql.memory_mb)
    settings = algorithm_config(open_rows, config.cql, header.bankruptcy_penalty)
    if evaluate is not None:
        settings.callbacks(on_train_result=EvaluateEvery(evaluate, config.checkpoint_every, config.cql.num_steps))
    with running(settings) as algorithm:
        newest = checkpoints.newest
        if newest is not None:
            algorithm.restore_from_path(newest.path.absolute())
            logger.info("event=resumed checkpoint=%s num_steps=%d", newest.path, newest.num_steps)
        elif config.init_from is not None:
            start_from(algorithm, config.init_from)
        run(algorithm, config, checkpoints, progress)
        chosen = checkpoints.best or checkpoints.newest
        if chosen is not None and chosen.num_steps != algorithm.num_steps:
            algorithm.restore_from_path(chosen.path.absolute())
        network, num_steps = mean_network(algorithm.network()), algorithm.num_steps
    artefact = make_artefact(header, network, config.cql)
    artefact.save(config.out)
    logger.info("event=trained policy=%s num_steps=%d", artefact.version, num_steps)
    return Trained(artefact, num_steps, checkpoints, {} if chosen is None else chosen.metrics)


def run(algorithm: DiscreteCQL, config: TrainConfig, checkpoints: Checkpoints, progress: Progress) -> None:
    """Train to the end, or until patience is lost, with checkpoints on the way."""
    num_steps = config.cql.num_steps
    while algorithm.num_steps < num_steps and not out_of_patience(checkpoints, config):
        before, result = algorithm.num_steps, algorithm.train()
        report(algorithm, num_steps, result, progress)
        if is_due(before, algorithm.num_steps, config.checkpoint_every, num_steps):
            checkpoints.save(algorithm, algorithm.num_steps, result.get(TUNE_PART, {}))


def out_of_patience(checkpoints: Checkpoints, config: TrainConfig) -> bool:
    """True when so many checkpoints came since the best; told from the checkpoints, so a restart knows it too."""
    best, newest = checkpoints.best, checkpoints.newest
    if config.patience is None or best is None or newest is None:
        return False
    return newest.num_steps - best.num_steps >= config.patience * config.checkpoint_every


def is_due(before: int, now: int, every: int, num_steps: int) -> bool:
    """Whether a checkpoint is due after the steps from `before` to `now`: at each multiple of `every`, and the end."""
    return now // every > before // every or now >= num_steps


@dataclass(frozen=True)
class EvaluateEvery:
    """A callback of RLlib: figures of the tune part join an iteration's result, where Tune and checkpoints see them."""

    evaluate: Evaluate
    every: int  # gradient steps
    num_steps: int

    def __call__(self, *, algorithm: DiscreteCQL, result: dict[str, Any], **_others: Any) -> None:
        before = algorithm.num_steps - algorithm.config.dataset_num_iters_per_learner
        if is_due(before, algorithm.num_steps, self.every, self.num_steps):
            result[TUNE_PART] = self.evaluate(mean_network(algorithm.network()))


def checkpoints_of(config: TrainConfig, header: DatasetHeader) -> Checkpoints:
    """Where this run's checkpoints are: what its result depends on names the folder."""
    cql = {k: v for k, v in asdict(config.cql).items() if k not in ("num_gpus_per_learner", "memory_mb")}
    identity = {
        "cql": cql,
        "data": header.manifest["data_fingerprint"],
        "tune_sessions": config.tune_sessions,
        "checkpoint_every": config.checkpoint_every,
        "patience": config.patience,
        "init_from": None if config.init_from is None else PolicyArtefact.load(config.init_from).version,
    }
    return Checkpoints.beside(config.out, identity, config.keep_checkpoints, METRIC)


def events_dir(config: TrainConfig) -> Path:
    """Where this run's TensorBoard events are: named as its checkpoints are, so that runs can be compared."""
    key = checkpoints_of(config, read_header(config.dataset)).folder.name
    return config.out.with_name(f"{config.out.name}.tensorboard") / key


def make_artefact(dataset: DatasetHeader, network: QNetwork, config: CqlConfig) -> PolicyArtefact:
    configs: dict[str, Any] = {**dataset.manifest["configs"], "cql": asdict(config)}
    configs["mean_cost_usd"] = dataset.manifest["mean_cost_usd"]
    return PolicyArtefact(
        catalog=dataset.catalog,
        embedder=dataset.embedder,
        layout=dataset.layout,
        estimator=dataset.estimator,
        network=network,
        risk=RiskPrices((1.0,), (dataset.bankruptcy_penalty,)),
        configs=configs,
        data_fingerprint=dataset.manifest["data_fingerprint"],
    )


def algorithm_config(open_rows: Callable[[], BatchSource], config: CqlConfig, penalty: float) -> DiscreteCQLConfig:
    """RLlib's form of a CqlConfig; penalty: of a bankruptcy, in turns of full quality."""
    steps = min(STEPS_PER_ITERATION, config.num_steps)
    rows_in_all = config.num_steps * config.batch_size * max(1, config.num_learners)
    settings: DiscreteCQLConfig = (
        DiscreteCQLConfig()
        .training(
            cql_alpha=config.cql_alpha,
            td_weight=config.td_weight,
            bankruptcy_penalty=penalty,
            history_noise=config.history_noise,
            memory_mb=config.memory_mb,
            source_fn=open_rows,
            gamma=config.gamma,
            tau=config.tau,
            lr=[[0, config.lr], [rows_in_all, 0.0]],  # RLlib counts schedule time in transitions
            train_batch_size_per_learner=config.batch_size,
        )
        .offline_data(input_="transitions", dataset_num_iters_per_learner=steps)
        .rl_module(model_config=network_settings(config))
        .learners(num_learners=config.num_learners, num_gpus_per_learner=config.num_gpus_per_learner)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    return settings


def network_settings(config: CqlConfig) -> dict[str, Any]:
    """Of make_ensemble."""
    return {
        "fcnet_hiddens": config.hidden,
        "risk_hidden": config.risk_hidden,
        "ensemble_size": config.ensemble_size,
    }


@contextmanager
def running(settings: DiscreteCQLConfig) -> Iterator[DiscreteCQL]:
    """The algorithm, on one thread: a network this small gains nothing from more, and loses all on a busy machine."""
    torch.manual_seed(settings.seed or 0)
    algorithm: DiscreteCQL = settings.build_algo()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield algorithm
    finally:
        torch.set_num_threads(threads)
        algorithm.stop()


def train_network(source: BatchSource, config: CqlConfig, penalty: float, progress: Progress) -> Ensemble:
    """Train on rows in memory for config.num_steps (rounded up to whole iterations); no checkpoints."""
    with running(algorithm_config(lambda: source, config, penalty)) as algorithm:
        while algorithm.num_steps < config.num_steps:
            report(algorithm, config.num_steps, algorithm.train(), progress)
        return algorithm.network()


def report(algorithm: DiscreteCQL, num_steps: int, result: dict[str, Any], progress: Progress) -> None:
    losses = result[LEARNER_RESULTS][DEFAULT_MODULE_ID]
    shown = {name: float(losses[name]) for name in SHOWN}
    shown |= {name: float(value) for name, value in result.get(TUNE_PART, {}).items()}
    progress(min(algorithm.num_steps, num_steps), num_steps, shown)
