"""Discrete CQL on RLlib's new API stack: module, learner, offline data, config and algorithm.

Built on the DQN parts, because RLlib's own CQL is for continuous actions only. Two things differ from DQN: the target
network moves with every gradient step (DQN counts environment steps, which offline training never makes), and the
data are rows of transitions (`reader.py`), not episodes.
"""

from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS, DQNLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils.metrics import LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from seqroute_ray.core.mdp import NUM_MONEY
from seqroute_ray.training.cql import ActionValueNetwork, Heads, PlainNetwork, cql_loss, make_network, td_targets
from seqroute_ray.training.reader import BANKRUPT, NEXT_ALLOWED, WEIGHTS, BatchSource, ShuffledRows

QUALITY_LOSS, BANKRUPTCY_LOSS, CONSERVATIVE_LOSS = "quality_loss", "bankruptcy_loss", "conservative_loss"


class QModule(TorchRLModule, QNetAPI, TargetNetworkAPI):
    """A Q-network and its target; `model_config` holds the fields that `setup` reads."""

    def setup(self) -> None:
        super().setup()
        settings = self.model_config
        self.network = make_network(self.observation_space.shape[0], int(self.action_space.n), settings)
        self.bankruptcy_penalty = settings["bankruptcy_penalty"]
        # Standard deviation of the noise on each state entry: the same sessions come back under thousands of budgets,
        # and a network that knows them by their history expects their outcomes instead of typical ones.
        noise = torch.zeros(self.observation_space.shape[0])
        noise[NUM_MONEY : settings.get("num_context", NUM_MONEY)] = settings["history_noise"]
        self.register_buffer("noise", noise, persistent=False)

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {QF_PREDS: self.network(batch[Columns.OBS])}

    def make_target_networks(self) -> None:
        self.target_network = make_target_network(self.network)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.network, self.target_network)]

    def get_non_inference_attributes(self) -> list[str]:
        return ["target_network"]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {QF_PREDS: self.target_network(batch[Columns.OBS])}

    def _forward(self, batch: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        heads = Heads.of(self.network(batch[Columns.OBS]))
        return {Columns.ACTIONS: heads.q_values(self.bankruptcy_penalty).argmax(dim=1)}

    def _forward_train(self, batch: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        state, next_state = batch[Columns.OBS], batch[Columns.NEXT_OBS]
        noise = torch.randn_like(state) * self.noise
        with torch.no_grad():  # gradients flow through the present state only
            next_q = self.network(next_state + noise)
            next_q_target = self.target_network(next_state + noise)
        return {QF_PREDS: self.network(state + noise), QF_NEXT_PREDS: next_q, QF_TARGET_NEXT_PREDS: next_q_target}


class DiscreteCQLLearner(DQNTorchLearner):
    """The loss of `cql.py`, and a target network that moves with every gradient step."""

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> torch.Tensor:
        penalty = config.bankruptcy_penalty
        targets = td_targets(
            batch[Columns.REWARDS],
            batch[BANKRUPT],
            batch[Columns.TERMINATEDS],
            Heads.of(fwd_out[QF_NEXT_PREDS]),
            Heads.of(fwd_out[QF_TARGET_NEXT_PREDS]),
            batch[NEXT_ALLOWED],
            config.gamma,
            penalty,
        )
        heads = Heads.of(fwd_out[QF_PREDS])
        loss = cql_loss(
            heads,
            batch[Columns.ACTIONS],
            targets,
            config.td_weight,
            config.cql_alpha,
            penalty,
            batch[WEIGHTS] if WEIGHTS in batch else None,  # noqa: SIM401 - RLlib's batch has no get
        )
        logged = {QUALITY_LOSS: loss.quality, BANKRUPTCY_LOSS: loss.bankruptcy, CONSERVATIVE_LOSS: loss.conservative}
        self.metrics.log_dict({name: value.detach() for name, value in logged.items()}, key=module_id, window=100)
        return loss.total

    def apply_gradients(self, gradients_dict: Any) -> None:
        super().apply_gradients(gradients_dict)
        for module_id in self.module.keys():  # noqa: SIM118 - no __iter__
            tau = self.config.get_config_for_module(module_id).tau
            for online, target in self.module[module_id].unwrapped().get_target_network_pairs():
                with torch.no_grad():
                    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)

    def after_gradient_based_update(self, *, timesteps: Any) -> None:
        # Skips DQNLearner's own update, which counts environment steps; learning-rate schedules stay.
        super(DQNLearner, self).after_gradient_based_update(timesteps=timesteps)


class RowData(OfflineData):
    """A BatchSource in Ray's object store, one shuffled share of its rows a learner."""

    def __init__(self, config: AlgorithmConfig) -> None:
        # Not super().__init__: it would open `input_` as a path with ray.data.
        source: BatchSource = config.source_fn()
        num_rows, num_shards = len(source), max(1, config.num_learners)
        reference = ray.put(source)
        self._shares = [ShuffledRows(reference, num_rows, i, num_shards, config.seed or 0) for i in range(num_shards)]

    def sample(self, *_args: Any, **_kwargs: Any) -> list[ShuffledRows]:
        return self._shares


class DiscreteCQLConfig(DQNConfig):
    """Settings of DiscreteCQL; `.training(cql_alpha=..., td_weight=...)` beside DQN's own."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DiscreteCQL)
        self._is_online = False  # no environment runners
        self.source_fn: Callable[[], BatchSource] | None = None
        self.cql_alpha, self.td_weight, self.bankruptcy_penalty = 0.01, 1.0, 2.0
        self.gamma, self.tau, self.lr, self.grad_clip = 1.0, 0.01, 1e-3, 10.0
        self.double_q, self.dueling, self.num_atoms, self.n_step = True, False, 1, 1
        self.train_batch_size_per_learner, self.dataset_num_iters_per_learner = 2048, 250
        # DQN's 1000 sampled steps never come in offline training: train() would loop for ever.
        self.min_sample_timesteps_per_iteration = self.min_train_timesteps_per_iteration = 0
        self.min_time_s_per_iteration = None
        self.offline_data_class = RowData

    def training(
        self,
        *,
        cql_alpha: float = NotProvided,
        td_weight: float = NotProvided,
        bankruptcy_penalty: float = NotProvided,
        source_fn: Callable[[], BatchSource] = NotProvided,
        **kwargs: Any,
    ) -> "DiscreteCQLConfig":
        super().training(**kwargs)
        own = {"cql_alpha": cql_alpha, "td_weight": td_weight, "source_fn": source_fn}
        for name, value in {**own, "bankruptcy_penalty": bankruptcy_penalty}.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_default_learner_class(self) -> type:
        return DiscreteCQLLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=QModule, model_config=self.model_config)


class DiscreteCQL(DQN):
    """One training iteration is `dataset_num_iters_per_learner` gradient steps on each learner."""

    @classmethod
    def get_default_config(cls) -> DiscreteCQLConfig:
        return DiscreteCQLConfig()

    def training_step(self) -> None:
        config = self.config
        num_rows = (
            config.train_batch_size_per_learner * max(1, config.num_learners) * config.dataset_num_iters_per_learner
        )
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, num_rows, reduce="lifetime_sum")
        results = self.learner_group.update(
            training_data=TrainingData(data_iterators=self.offline_data.sample()),
            minibatch_size=config.train_batch_size_per_learner,
            num_iters=config.dataset_num_iters_per_learner,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(NUM_ENV_STEPS_SAMPLED_LIFETIME)},
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def network(self) -> ActionValueNetwork | PlainNetwork:
        """A copy of the learned network; the same for local and remote learners."""
        state = self.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
        config = self.config
        network = make_network(config.observation_space.shape[0], int(config.action_space.n), config.model_config)
        prefix = "network."
        weights = {k.removeprefix(prefix): torch.tensor(v) for k, v in state.items() if k.startswith(prefix)}
        network.load_state_dict(weights)
        return network
