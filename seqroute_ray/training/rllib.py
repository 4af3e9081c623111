"""Discrete CQL on RLlib's new API stack: offline data, config and algorithm.

    DiscreteCQLConfig().offline_data(input_="rows.parquet").training(cql_alpha=0.1).build_algo().train()

How it learns is in `learner.py`. The data are rows of transitions (`reader.py`), not episodes.
"""

from collections.abc import Callable
from functools import partial
from tempfile import gettempdir
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.storage import absolute
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.ensemble import Ensemble, make_ensemble
from seqroute_ray.training.learner import DiscreteCQLLearner, QModule
from seqroute_ray.training.lost_learners import all_learners
from seqroute_ray.training.placement import check_placement
from seqroute_ray.training.reader import BatchSource, ShuffledRows, check_batch_size
from seqroute_ray.training.sources import open_source


class RowData(OfflineData):
    """What opens the BatchSource, in Ray's object store, and one shuffled share of its rows a learner."""

    def __init__(self, config: AlgorithmConfig) -> None:
        # Not super().__init__: it would open `input_` as a path with ray.data.
        open_rows = config.rows_opener()
        num_rows, num_shards, reference = len(open_rows()), max(1, config.num_learners), ray.put(open_rows)
        self._shares = [
            ShuffledRows(reference, num_rows, i, num_shards, config.seed or 0, config.history_noise)
            for i in range(num_shards)
        ]

    def sample(self, *_args: Any, **_kwargs: Any) -> list[ShuffledRows]:
        return self._shares


class DiscreteCQLConfig(DQNConfig):
    """Settings of DiscreteCQL; `.training(cql_alpha=..., td_weight=...)` beside DQN's own.

    `.offline_data(input_=PATH)` takes a dataset of `seqroute relabel` or any Parquet rows with discrete actions, see
    parquet.py; `.training(source_fn=...)` anything that opens a BatchSource. The spaces are read off the data unless
    `.environment(...)` gives them.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DiscreteCQL)
        self._is_online = False  # no environment runners
        self.source_fn: Callable[[], BatchSource] | None = None
        self.cql_alpha, self.td_weight, self.bankruptcy_penalty, self.history_noise = 0.01, 1.0, 0.0, 0.0
        self.memory_mb = CqlConfig().memory_mb
        self.network_parts: dict[str, int] = {}  # BatchSource.network
        self.gamma, self.tau, self.lr, self.grad_clip = 1.0, 0.01, 1e-3, 10.0
        self.double_q, self.dueling, self.num_atoms, self.n_step = True, False, 1, 1
        self.train_batch_size_per_learner, self.dataset_num_iters_per_learner = 2048, 250
        # DQN's 1000 sampled steps never come in offline training: train() would loop for ever.
        self.min_sample_timesteps_per_iteration = self.min_train_timesteps_per_iteration = 0
        self.min_time_s_per_iteration = None
        # RLlib looks at every gradient twice a step for numbers that are not finite, and goes on with zeros in their
        # place; training_step looks at the loss instead, and stops.
        self.torch_skip_nan_gradients = True
        self.offline_data_class = RowData

    def training(
        self,
        *,
        cql_alpha: float = NotProvided,
        td_weight: float = NotProvided,
        bankruptcy_penalty: float = NotProvided,
        history_noise: float = NotProvided,
        memory_mb: float = NotProvided,
        source_fn: Callable[[], BatchSource] = NotProvided,
        **kwargs: Any,
    ) -> "DiscreteCQLConfig":
        """The fields of CqlConfig of these names; bankruptcy_penalty: what Q takes off for the chance of BANKRUPT."""
        super().training(**kwargs)
        own = {
            "cql_alpha": cql_alpha,
            "td_weight": td_weight,
            "bankruptcy_penalty": bankruptcy_penalty,
            "history_noise": history_noise,
            "memory_mb": memory_mb,
            "source_fn": source_fn,
        }
        for name, value in own.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_state(self) -> dict[str, Any]:
        # RLlib drops what is -1 for a deprecated setting: validate would see the default in its place.
        return {**super().get_state(), **{name: getattr(self, name) for name in ("cql_alpha", "td_weight", "tau")}}

    def rows_opener(self) -> Callable[[], BatchSource]:
        """A function that opens the data, cheap to ship when they are a path. Raises ConfigError when there is none."""
        if self.source_fn is not None:
            return self.source_fn
        if not isinstance(self.input_, str) or self.input_ == "sampler":
            raise ConfigError(
                f"input_ must be one path of a file or a folder, got {self.input_!r}; call .offline_data(input_=PATH)"
            )
        return partial(open_source, absolute(self.input_), self.memory_mb, self.input_read_schema)

    def validate(self) -> None:
        """Reads the spaces off the data. Raises ConfigError, DataError before anything is built."""
        if not self.in_evaluation:
            names = ("cql_alpha", "td_weight", "history_noise", "memory_mb", "gamma", "tau", "num_learners")
            CqlConfig(
                **{name: getattr(self, name) for name in names},
                batch_size=self.train_batch_size_per_learner,
                num_gpus_per_learner=self.num_gpus_per_learner,
                ensemble_size=self.model_config.get("ensemble_size", 1),
            )
            source = self.rows_opener()()
            check_batch_size(self.train_batch_size_per_learner, max(1, self.num_learners), len(source))
            self.network_parts = source.network
            box = gym.spaces.Box(-np.inf, np.inf, (source.state_dim,), np.float32)
            self.observation_space: Any = self.observation_space or box
            self.action_space: Any = self.action_space or gym.spaces.Discrete(source.num_actions)
            shape, num_actions = self.observation_space.shape, getattr(self.action_space, "n", 0)
            if shape != (source.state_dim,) or num_actions < source.num_actions:
                raise ConfigError(
                    f"the data have observations of {source.state_dim} numbers and {source.num_actions} actions, the "
                    f"spaces are {self.observation_space} and {self.action_space}; leave .environment(...) out, or "
                    "give a Box of that shape and a Discrete with so many actions"
                )
        super().validate()

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        own = {"bankruptcy_penalty": self.bankruptcy_penalty, **self.network_parts}
        return {**super()._model_config_auto_includes, **own}

    def get_default_learner_class(self) -> type:
        return DiscreteCQLLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=QModule, model_config=self.model_config)


class DiscreteCQL(DQN):
    """One training iteration is `dataset_num_iters_per_learner` gradient steps on each learner."""

    @classmethod
    def get_default_config(cls) -> DiscreteCQLConfig:
        return DiscreteCQLConfig()

    def _setup_logdir(self) -> None:
        if self._storage is None:  # Ray would make a folder in ~/ray_results for every algorithm, and leave it empty
            self._logdir = gettempdir()
        else:
            super()._setup_logdir()

    def setup(self, config: AlgorithmConfig) -> None:
        check_placement(config)
        super().setup(config)

    def training_step(self) -> None:
        config = self.config
        rows_per_step = config.train_batch_size_per_learner * max(1, config.num_learners)
        num_steps = config.dataset_num_iters_per_learner
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, num_steps * rows_per_step, reduce="lifetime_sum")
        with all_learners(self.learner_group):
            results = self.learner_group.update(
                training_data=TrainingData(data_iterators=self.offline_data.sample()),
                minibatch_size=config.train_batch_size_per_learner,
                num_iters=num_steps,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: (self.num_steps + num_steps) * rows_per_step},
            )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        loss = float(self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID, Learner.TOTAL_LOSS_KEY)))
        if not np.isfinite(loss):
            raise DataError(
                f"the loss is {loss} after {self.num_steps + num_steps} gradient steps; lower lr or grad_clip, or look "
                "for extreme numbers in the data"
            )

    @property
    def num_steps(self) -> int:
        """Gradient steps so far."""
        return int(self.iteration) * int(self.config.dataset_num_iters_per_learner)

    def set_state(self, state: dict[str, Any]) -> None:
        # RLlib's own goes on to synchronise environment runners, of which there are none.
        own = {name: value for name, value in state.items() if name != COMPONENT_LEARNER_GROUP}
        super().set_state(own)
        if COMPONENT_LEARNER_GROUP in state:
            self.learner_group.set_state(state[COMPONENT_LEARNER_GROUP])

    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        """Raises StoppedError when a learner is lost: its part of the checkpoint may be missing."""
        with all_learners(self.learner_group):
            return str(super().save_to_path(*args, **kwargs))

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        with all_learners(self.learner_group):
            Checkpointable.restore_from_path(self, path, *args, **kwargs)  # not Algorithm's: see set_state

    def network(self) -> Ensemble:
        """A copy of the learned networks; the same for local and remote learners."""
        with all_learners(self.learner_group):
            module = self.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"]
        config = self.config
        network = make_ensemble(config.observation_space.shape[0], int(config.action_space.n), config.model_config)
        prefix = "network."
        state = module[DEFAULT_MODULE_ID]
        weights = {k.removeprefix(prefix): torch.tensor(v) for k, v in state.items() if k.startswith(prefix)}
        network.load_state_dict(weights)
        return network
