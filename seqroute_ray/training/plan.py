"""What a training run would do, from one shard and a few gradient steps: nothing is written."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import Dataset, DatasetHeader, read_header, read_transitions, read_turns
from seqroute_ray.core.storage import Folder
from seqroute_ray.training.config import TrainConfig
from seqroute_ray.training.cql import ActionValueNetwork
from seqroute_ray.training.ensemble import Ensemble, make_ensemble
from seqroute_ray.training.reader import check_batch_size
from seqroute_ray.training.relabeled import TRANSITION_ROW, RelabeledData, turn_row_type
from seqroute_ray.training.train import STEPS_PER_ITERATION, checkpoints_of, network_settings

TRIED_STEPS = 10


@dataclass(frozen=True)
class TrainPlan:
    """Counts are exact; time and memory are estimates for this machine."""

    num_transitions: int
    state_dim: int
    num_actions: int
    network: list[str]  # its layers
    num_parameters: int
    num_steps: int  # in whole iterations
    resumes_from_step: int
    num_epochs: float
    rows_per_step: int  # of all learners
    num_checkpoints: int
    about_step_s: float
    about_wall_s: float  # of the steps alone, at one thread a learner
    about_rows_mb: float  # of transitions and turns in memory, in each process
    streams: bool  # some rows are read as they are needed, see memory_mb


def plan_training(config: TrainConfig) -> TrainPlan:
    """Try a few steps on one shard. Raises ConfigError, DataError."""
    cql, header = config.cql, read_header(config.dataset)
    num_transitions, num_turns = header.manifest["num_transitions"], header.manifest["num_turns"]
    num_learners = max(1, cql.num_learners)
    check_batch_size(cql.batch_size, num_learners, num_transitions)
    source = one_shard(config, header)
    network = make_ensemble(source.state_dim, source.num_actions, {**network_settings(cql), **source.network})
    iteration = min(STEPS_PER_ITERATION, cql.num_steps)
    num_steps = math.ceil(cql.num_steps / iteration) * iteration
    newest = checkpoints_of(config, header).newest if config.resume else None
    done = newest.num_steps if newest else 0
    step_s = time_a_step(source, network, cql.batch_size)
    row_bytes = TRANSITION_ROW.itemsize, turn_row_type(header.layout).itemsize
    tables_mb = [rows * size / 2**20 for rows, size in zip((num_transitions, num_turns), row_bytes, strict=True)]
    return TrainPlan(
        num_transitions=num_transitions,
        state_dim=source.state_dim,
        num_actions=source.num_actions,
        network=layers(network),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_steps=num_steps,
        resumes_from_step=done,
        num_epochs=num_steps * cql.batch_size * num_learners / num_transitions,
        rows_per_step=cql.batch_size * num_learners,
        num_checkpoints=math.ceil(num_steps / config.checkpoint_every),
        about_step_s=step_s,
        about_wall_s=step_s * max(0, num_steps - done),
        about_rows_mb=sum(min(table, cql.memory_mb) for table in tables_mb),
        streams=max(tables_mb) > cql.memory_mb,
    )


def one_shard(config: TrainConfig, header: DatasetHeader) -> RelabeledData:
    """The shard of most transitions, in memory and checked."""
    folder = Folder.at(config.dataset)
    shard = max(header.manifest["shards"], key=lambda shard: int(shard["num_transitions"]))
    turns, difficulty = read_turns(folder, shard)
    transitions = read_transitions(folder, shard)
    own = Dataset(**vars(header), turns=turns, difficulty=difficulty, transitions=transitions)
    return RelabeledData.of(own)


def layers(ensemble: Ensemble) -> list[str]:
    network, size = ensemble.networks[0], len(ensemble.networks)
    assert isinstance(network, ActionValueNetwork)  # noqa: S101 - states of a relabeled dataset have parts
    heads = (("quality", network.quality), ("bankruptcy", network.bankruptcy))
    times = f"{size} x " if size > 1 else ""
    return [f"{times}{name}: {layer}" for name, head in heads for layer in head.linears()]


def time_a_step(source: RelabeledData, network: Ensemble, batch_size: int) -> float:
    """Median seconds of a batch, three passes through the network and one back, on one thread."""
    rng, threads, seconds = np.random.default_rng(0), torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(TRIED_STEPS):
            started = time.perf_counter()
            batch = source.batch(rng.integers(0, len(source), batch_size))
            state, next_state = torch.from_numpy(batch[Columns.OBS]), torch.from_numpy(batch[Columns.NEXT_OBS])
            with torch.no_grad():
                network(next_state), network(next_state)
            network(state).mean().backward()
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(seconds))
