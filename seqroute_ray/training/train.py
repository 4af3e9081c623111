"""Train a policy from a relabeled dataset and write it as an artefact."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS

from seqroute_ray.core.dataset import Dataset, read_dataset
from seqroute_ray.core.policy import PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.core.strata import strata
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.cql import ActionValueNetwork, PlainNetwork, to_numpy
from seqroute_ray.training.reader import BatchSource, RelabeledData
from seqroute_ray.training.rllib import BANKRUPTCY_LOSS, CONSERVATIVE_LOSS, QUALITY_LOSS, DiscreteCQL, DiscreteCQLConfig
from seqroute_ray.training.stratified import Stratified

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, losses)
Network = ActionValueNetwork | PlainNetwork
LOSSES = (QUALITY_LOSS, BANKRUPTCY_LOSS, CONSERVATIVE_LOSS)
STEPS_PER_ITERATION = 250  # learning-rate and progress granularity


def train(config: TrainConfig, progress: Progress = lambda _done, _total, _losses: None) -> PolicyArtefact:
    """Train and save. Ray must be initialised. Raises DataError, ConfigError."""
    dataset = read_dataset(config.dataset)
    network = train_network(batch_source(dataset, config.cql), config.cql, bankruptcy_penalty(dataset), progress)
    if not isinstance(network, ActionValueNetwork):
        raise TypeError(f"a relabeled dataset trains an ActionValueNetwork, got {type(network).__name__}")
    artefact = make_artefact(dataset, to_numpy(network), config.cql)
    artefact.save(config.out)
    logger.info("event=trained policy=%s num_steps=%d", artefact.version, config.cql.num_steps)
    return artefact


def batch_source(dataset: Dataset, config: CqlConfig) -> BatchSource:
    """What the learners draw from."""
    source = RelabeledData.of(dataset)
    if config.sampling == "uniform":
        return source
    t = dataset.transitions
    return Stratified.of(source, strata(dataset.difficulty[t.turn_row], t.bankrupt))


def bankruptcy_penalty(dataset: Dataset) -> float:
    """What the dataset's rewards take off for a bankruptcy."""
    return float(dataset.manifest["configs"]["hbr"]["bankruptcy_penalty"])


def make_artefact(dataset: Dataset, network: QNetwork, config: CqlConfig) -> PolicyArtefact:
    configs: dict[str, Any] = {**dataset.manifest["configs"], "cql": asdict(config)}
    configs["mean_cost_usd"] = dataset.manifest["mean_cost_usd"]
    return PolicyArtefact(
        catalog=dataset.catalog,
        embedder=dataset.embedder,
        layout=dataset.layout,
        estimator=dataset.estimator,
        network=network,
        risk=RiskPrices((1.0,), (bankruptcy_penalty(dataset),)),
        configs=configs,
        data_fingerprint=dataset.manifest["data_fingerprint"],
    )


def algorithm_config(source: BatchSource, config: CqlConfig, penalty: float) -> DiscreteCQLConfig:
    """RLlib's form of a CqlConfig; penalty: of a bankruptcy, in turns of full quality."""
    steps = min(STEPS_PER_ITERATION, config.num_steps)
    rows_in_all = config.num_steps * config.batch_size * max(1, config.num_learners)
    settings: DiscreteCQLConfig = (
        DiscreteCQLConfig()
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (source.state_dim,), np.float32),
            action_space=gym.spaces.Discrete(source.num_actions),
        )
        .training(
            cql_alpha=config.cql_alpha,
            td_weight=config.td_weight,
            bankruptcy_penalty=penalty,
            source_fn=lambda: source,
            gamma=config.gamma,
            tau=config.tau,
            lr=[[0, config.lr], [rows_in_all, 0.0]],  # RLlib counts schedule time in transitions
            train_batch_size_per_learner=config.batch_size,
        )
        .offline_data(input_="transitions", dataset_num_iters_per_learner=steps)
        .rl_module(
            model_config={
                "hidden": config.hidden,
                "risk_hidden": config.risk_hidden,
                **source.network,
                "bankruptcy_penalty": penalty,
                "history_noise": config.history_noise,
            }
        )
        .learners(num_learners=config.num_learners, num_gpus_per_learner=config.num_gpus_per_learner)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    return settings


def train_network(source: BatchSource, config: CqlConfig, penalty: float, progress: Progress) -> Network:
    """Run the algorithm for config.num_steps (rounded up to whole iterations)."""
    torch.manual_seed(config.seed)
    algorithm = algorithm_config(source, config, penalty).build_algo()
    threads = torch.get_num_threads()
    # A network this small gains nothing from threads, and waiting threads lose all on a busy machine.
    torch.set_num_threads(1)
    try:
        return _run(algorithm, config, progress)
    finally:
        torch.set_num_threads(threads)
        algorithm.stop()


def _run(algorithm: DiscreteCQL, config: CqlConfig, progress: Progress) -> Network:
    steps = min(STEPS_PER_ITERATION, config.num_steps)
    for done in range(steps, config.num_steps + steps, steps):
        results = algorithm.train()[LEARNER_RESULTS][DEFAULT_MODULE_ID]
        progress(min(done, config.num_steps), config.num_steps, {k: float(results[k]) for k in LOSSES})
    return algorithm.network()
