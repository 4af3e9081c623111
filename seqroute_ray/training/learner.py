"""The learning of discrete CQL as RLlib's parts: a module with a target network, and a learner.

Built on the DQN parts, because RLlib's own CQL is for continuous actions only. Two things differ from DQN: the target
network moves with every gradient step (DQN counts environment steps, which offline training never makes), and the
state of a learner holds all that the next step depends on.
"""

from typing import Any

import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS, DQNLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from seqroute_ray.training.cql import CqlLoss, Heads, cql_loss, td_targets
from seqroute_ray.training.ensemble import make_ensemble
from seqroute_ray.training.reader import ALLOWED, BANKRUPT, NEXT_ALLOWED, WEIGHTS

TD_LOSS, CONSERVATIVE_LOSS, Q_MEAN, Q_GAP = "td_loss", "conservative_loss", "q_mean", "q_gap"
QUALITY_LOSS, BANKRUPTCY_LOSS = "quality_loss", "bankruptcy_loss"  # the heads' parts of the TD loss
LOGGED = {  # fields of CqlLoss by name, means over the networks
    TD_LOSS: "td",
    CONSERVATIVE_LOSS: "conservative",
    Q_MEAN: "q_mean",
    Q_GAP: "q_gap",
    QUALITY_LOSS: "quality",
    BANKRUPTCY_LOSS: "bankruptcy",
}
METRICS_WINDOW = 100  # gradient steps that a reported loss is the mean of
NUM_STEPS = "num_gradient_steps"


class QModule(TorchRLModule, QNetAPI, TargetNetworkAPI):
    """An ensemble of Q-networks and their targets; `model_config` holds the settings of make_ensemble."""

    def setup(self) -> None:
        super().setup()
        settings = self.model_config
        self.network = make_ensemble(self.observation_space.shape[0], int(self.action_space.n), settings)
        self.bankruptcy_penalty = settings["bankruptcy_penalty"]

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
        with torch.no_grad():  # gradients flow through the present state only
            next_q, next_q_target = self.network.each(next_state), self.target_network.each(next_state)
        return {QF_PREDS: self.network.each(state), QF_NEXT_PREDS: next_q, QF_TARGET_NEXT_PREDS: next_q_target}


def network_loss(
    config: Any, columns: dict[str, Any], now: Heads, following: Heads, following_target: Heads
) -> CqlLoss:
    """The loss of one network on a batch."""
    rewards, penalty = columns[Columns.REWARDS], config.bankruptcy_penalty
    targets = td_targets(
        rewards,
        columns.get(BANKRUPT, torch.zeros_like(rewards)),
        columns[Columns.TERMINATEDS],
        following,
        following_target,
        columns.get(NEXT_ALLOWED),
        config.gamma,
        penalty,
    )
    return cql_loss(
        now,
        columns[Columns.ACTIONS],
        targets,
        config.td_weight,
        config.cql_alpha,
        penalty,
        columns.get(ALLOWED),
        columns.get(WEIGHTS),
    )


class DiscreteCQLLearner(DQNTorchLearner):
    """The loss of `cql.py`, and a target network that moves with every gradient step."""

    def build(self) -> None:
        super().build()
        self.num_steps = 0  # gradient steps so far: also the batches drawn, which tells the reader where to go on
        for optimizer in self._optimizers_on_gpu():
            # RLlib's first rate is a tensor there: Adam would take one parameter at a time, and wait at each.
            self._set_optimizer_lr(optimizer, float(self._get_optimizer_lr(optimizer)))

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> torch.Tensor:
        columns = dict(batch)  # RLlib's batch has no get
        outputs = zip(*(fwd_out[name] for name in (QF_PREDS, QF_NEXT_PREDS, QF_TARGET_NEXT_PREDS)), strict=True)
        losses = [network_loss(config, columns, *map(Heads.of, of_network)) for of_network in outputs]
        logged = {
            name: torch.stack([getattr(loss, field) for loss in losses]).detach().mean()
            for name, field in LOGGED.items()
        }
        self.metrics.log_dict(logged, key=module_id, window=METRICS_WINDOW)
        return torch.stack([loss.total for loss in losses]).sum()  # not the mean: each network learns as it would alone

    def apply_gradients(self, gradients_dict: Any) -> None:
        super().apply_gradients(gradients_dict)
        self.num_steps += 1
        for module_id in self.module.keys():  # noqa: SIM118 - no __iter__
            tau = self.config.get_config_for_module(module_id).tau
            for online, target in self.module[module_id].unwrapped().get_target_network_pairs():
                with torch.no_grad():
                    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)

    def after_gradient_based_update(self, *, timesteps: Any) -> None:
        # Skips DQNLearner's own update, which counts environment steps; learning-rate schedules stay.
        super(DQNLearner, self).after_gradient_based_update(timesteps=timesteps)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return super().update(*args, first_batch=self.num_steps, **kwargs)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), NUM_STEPS: self.num_steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self._weights_seq_no = 0  # RLlib keeps the weights that it has where it takes them for newer
        super().set_state(state)
        if NUM_STEPS in state:
            self.num_steps, self.iterator = state[NUM_STEPS], None
        for optimizer in self._optimizers_on_gpu():
            # RLlib puts Adam's counters on the GPU; where they begin, in main memory, reading them waits for nothing.
            for moments in optimizer.state.values():
                moments["step"] = moments["step"].to("cpu", torch.float32)

    def _optimizers_on_gpu(self) -> list[torch.optim.Optimizer]:
        return list(self._named_optimizers.values()) if self.device.type == "cuda" else []
