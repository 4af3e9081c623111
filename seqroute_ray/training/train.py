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
from seqroute_ray.core.mdp import StateLayout
from seqroute_ray.core.policy import PolicyArtefact, QNetwork, RiskPrices
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.reader import TrainingColumns, training_columns
from seqroute_ray.training.rllib import BANKRUPTCY_LOSS, CONSERVATIVE_LOSS, QUALITY_LOSS, DiscreteCQL, DiscreteCQLConfig

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, losses)
LOSSES = (QUALITY_LOSS, BANKRUPTCY_LOSS, CONSERVATIVE_LOSS)
STEPS_PER_ITERATION = 250  # learning-rate and progress granularity


def train(config: TrainConfig, progress: Progress = lambda _done, _total, _losses: None) -> PolicyArtefact:
    """Train and save. Ray must be initialised. Raises DataError, ConfigError."""
    dataset = read_dataset(config.dataset)
    network = train_network(training_columns(dataset), config.cql, progress)
    artefact = make_artefact(dataset, network, config.cql)
    artefact.save(config.out)
    logger.info("event=trained policy=%s num_steps=%d", artefact.version, config.cql.num_steps)
    return artefact


def make_artefact(dataset: Dataset, network: QNetwork, config: CqlConfig) -> PolicyArtefact:
    configs: dict[str, Any] = {**dataset.manifest["configs"], "cql": asdict(config)}
    configs["mean_cost_usd"] = dataset.manifest["mean_cost_usd"]
    return PolicyArtefact(
        catalog=dataset.catalog,
        embedder=dataset.embedder,
        layout=dataset.layout,
        estimator=dataset.estimator,
        network=network,
        risk=RiskPrices((1.0,), (config.bankruptcy_penalty,)),
        configs=configs,
        data_fingerprint=dataset.manifest["data_fingerprint"],
    )


def algorithm_config(columns: TrainingColumns, config: CqlConfig) -> DiscreteCQLConfig:
    """RLlib's form of a CqlConfig."""
    state_dim, num_actions = columns["obs"].shape[1], columns["next_allowed"].shape[1]
    steps = min(STEPS_PER_ITERATION, config.num_steps)
    rows_in_all = config.num_steps * config.batch_size * max(1, config.num_learners)
    settings: DiscreteCQLConfig = (
        DiscreteCQLConfig()
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (state_dim,), np.float32),
            action_space=gym.spaces.Discrete(num_actions),
        )
        .training(
            cql_alpha=config.cql_alpha,
            td_weight=config.td_weight,
            bankruptcy_penalty=config.bankruptcy_penalty,
            columns_fn=lambda: columns,
            gamma=config.gamma,
            tau=config.tau,
            lr=[[0, config.lr], [rows_in_all, 0.0]],  # RLlib counts schedule time in transitions
            train_batch_size_per_learner=config.batch_size,
        )
        .offline_data(input_="columns", dataset_num_iters_per_learner=steps)
        .rl_module(
            model_config={
                "hidden": config.hidden,
                "bankruptcy_penalty": config.bankruptcy_penalty,
                "feature_noise": config.feature_noise,
                "num_features": StateLayout.features_of(num_actions),
            }
        )
        .learners(num_learners=config.num_learners, num_gpus_per_learner=config.num_gpus_per_learner)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    return settings


def train_network(columns: TrainingColumns, config: CqlConfig, progress: Progress) -> QNetwork:
    """Run the algorithm for config.num_steps (rounded up to whole iterations); returns the network for numpy."""
    state_dim, num_actions = columns["obs"].shape[1], columns["next_allowed"].shape[1]
    torch.manual_seed(config.seed)
    algorithm = algorithm_config(columns, config).build_algo()
    try:
        return _run(algorithm, state_dim, num_actions, config, progress)
    finally:
        algorithm.stop()


def _run(algorithm: DiscreteCQL, state_dim: int, num_actions: int, config: CqlConfig, progress: Progress) -> QNetwork:
    steps = min(STEPS_PER_ITERATION, config.num_steps)
    for done in range(steps, config.num_steps + steps, steps):
        results = algorithm.train()[LEARNER_RESULTS][DEFAULT_MODULE_ID]
        progress(min(done, config.num_steps), config.num_steps, {k: float(results[k]) for k in LOSSES})
    return algorithm.q_network(state_dim, config.hidden, num_actions)
