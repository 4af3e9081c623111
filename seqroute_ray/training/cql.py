"""Discrete conservative Q-learning: the network and the loss, in plain torch.

The network has two heads, quality still to come and the logit of going bankrupt; Q = quality - penalty * bankruptcy.
A rare event with a large penalty is learned better as a probability than inside one squared error, and by weights of
its own. The quality head learns what lies beyond this turn's estimate: the value of what the action leaves.

The conservative term logsumexp(Q) - Q[a] is the cross entropy of softmax(Q) at the logged action, so one loss covers
three learners: alpha = 0 is double DQN, td_weight = 0 is behaviour cloning, both together are CQL.
Source: Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779, equation 4 (discrete CQL(H)).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seqroute_ray.core.policy import Perceptron, QNetwork
from seqroute_ray.training.config import CqlConfig


@dataclass(frozen=True)
class CqlLoss:
    """The parts of the loss and what the Q-values look like, each a scalar."""

    total: Tensor
    quality: Tensor
    bankruptcy: Tensor
    conservative: Tensor
    q_mean: Tensor  # of the logged actions
    q_gap: Tensor  # from the logged to the best allowed action

    @property
    def td(self) -> Tensor:
        return self.quality + self.bankruptcy


@dataclass(frozen=True)
class Heads:
    """A network's output [N, 2 A] taken apart."""

    quality: Tensor  # [N, A]
    bankruptcy_logit: Tensor  # [N, A]

    @classmethod
    def of(cls, output: Tensor) -> "Heads":
        return cls(*output.chunk(2, dim=1))

    def q_values(self, penalty: float) -> Tensor:
        return self.quality - penalty * torch.sigmoid(self.bankruptcy_logit)

    def at(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Quality and bankruptcy logit [N] of the chosen actions [N]."""
        index = action.unsqueeze(1)
        return self.quality.gather(1, index).squeeze(1), self.bankruptcy_logit.gather(1, index).squeeze(1)


DEFAULT_HIDDEN, DEFAULT_RISK_HIDDEN = CqlConfig().hidden, CqlConfig().risk_hidden
PARTS = ("num_context", "num_after", "num_risk")  # of a state: settings of make_network
# Where the chance of going bankrupt starts: 5 %. From 50 % each turn's chance must first come down by way of the turns
# after it, and rare bankruptcies are told apart by type of task only when it has.
RARE_LOGIT = -3.0


class ActionPerceptron(nn.Module):
    """core.policy.Perceptron in torch: context [N, C], own [N, A, W] -> [N, A]. It starts near 0, or at `start`."""

    def __init__(self, num_context: int, num_own: int, hidden: Sequence[int], start: float | None = None) -> None:
        super().__init__()
        self.num_own = num_own
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise([num_context + num_own, *hidden, 1]))
        nn.init.zeros_(self.linears()[-1].weight)
        if start is not None:
            nn.init.constant_(self.linears()[-1].bias, start)

    def linears(self) -> list[nn.Linear]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, context: Tensor, own: Tensor) -> Tensor:
        first, *rest = self.linears()
        weight, num_context = first.weight.T, context.shape[1]
        shared = context @ weight[:num_context] + first.bias
        values: Tensor = shared.unsqueeze(1) + own[..., : self.num_own] @ weight[num_context:]
        for layer in rest:
            values = layer(torch.relu(values))
        return values[..., 0]


class ActionValueNetwork(nn.Module):
    """core.policy.QNetwork in torch: [N, state_dim] -> [N, 2 num_actions], see Heads. It starts with the estimates."""

    def __init__(
        self, num_context: int, num_after: int, num_risk: int, hidden: Sequence[int], risk_hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.num_context, self.num_after = num_context, num_after
        self.quality = ActionPerceptron(num_context, num_after - num_risk, hidden)
        self.bankruptcy = ActionPerceptron(num_context, num_after, risk_hidden, RARE_LOGIT)
        self.estimate_weight = nn.Parameter(torch.ones(()))  # 1 when planning; cloning learns its own

    def forward(self, state: Tensor) -> Tensor:
        context, own = state[:, : self.num_context], state[:, self.num_context :]
        num_actions = own.shape[1] // (1 + self.num_after)
        estimate, after = own[:, :num_actions], own[:, num_actions:].reshape(-1, num_actions, self.num_after)
        quality = self.estimate_weight * estimate + self.quality(context, after)
        return torch.cat([quality, self.bankruptcy(context, after)], dim=1)


class PlainNetwork(nn.Module):
    """A multi-layer perceptron [N, state_dim] -> [N, 2 num_actions]: states without parts, as in the paper."""

    def __init__(self, state_dim: int, hidden: Sequence[int], num_actions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for sizes in pairwise([state_dim, *hidden]):
            layers += [nn.Linear(*sizes), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear([state_dim, *hidden][-1], 2 * num_actions))

    def forward(self, state: Tensor) -> Tensor:
        values: Tensor = self.layers(state)
        return values


Network = ActionValueNetwork | PlainNetwork


def make_network(state_dim: int, num_actions: int, settings: Mapping[str, Any]) -> Network:
    """By RLlib's `fcnet_hiddens`; PARTS and the widths of the second head too where a state has parts."""
    hidden = settings.get("fcnet_hiddens", DEFAULT_HIDDEN)
    if "num_context" in settings:
        num_context, num_after, num_risk = (settings[name] for name in PARTS)
        risk_hidden = settings.get("risk_hidden", DEFAULT_RISK_HIDDEN)
        return ActionValueNetwork(num_context, num_after, num_risk, hidden, risk_hidden)
    return PlainNetwork(state_dim, hidden, num_actions)


@dataclass(frozen=True)
class Targets:
    """What the heads should say of the logged actions, each [N], without gradient."""

    quality: Tensor
    bankruptcy: Tensor  # a probability


def td_targets(
    quality: Tensor,
    bankrupt: Tensor,
    terminated: Tensor,
    following: Heads,
    following_target: Heads,
    next_allowed: Tensor | None,
    gamma: float,
    penalty: float,
) -> Targets:
    """Double-Q targets: the online network picks among allowed [N, A] next actions, the target network values the pick.

    quality [N] of the turn (0 when it bankrupts), bankrupt [N], terminated [N]; next_allowed: None allows all.
    """
    best = masked(following.q_values(penalty), next_allowed).argmax(dim=1)
    next_quality, next_logit = following_target.at(best)
    goes_on = gamma * (~terminated)
    return Targets(quality + goes_on * next_quality, bankrupt + goes_on * torch.sigmoid(next_logit))


def masked(q_values: Tensor, allowed: Tensor | None) -> Tensor:
    """Q-values [N, A], minus infinity where an action is not allowed; None allows all."""
    return q_values if allowed is None else q_values.masked_fill(~allowed, -torch.inf)


def cql_loss(
    heads: Heads,
    action: Tensor,
    targets: Targets,
    td_weight: float,
    cql_alpha: float,
    penalty: float,
    allowed: Tensor | None = None,
    weight: Tensor | None = None,
) -> CqlLoss:
    """Squared error of quality, cross entropy of bankruptcy, and the conservative term over the actions allowed.

    action: [N] int64. allowed: [N, A], None allows all; the conservative term always counts the logged action as
    allowed. The bankruptcy head learns nothing from rows whose action is not: no policy takes it there, and what mostly
    bankrupts would blur what rarely does. weight: [N] of the rows, of mean 1; None: all alike.
    """
    quality, bankruptcy_logit = heads.at(action)

    def mean(loss: Tensor) -> Tensor:
        return loss.mean() if weight is None else (weight * loss).mean()

    quality_loss = mean(functional.mse_loss(quality, targets.quality, reduction="none"))
    entropy = functional.binary_cross_entropy_with_logits(bankruptcy_logit, targets.bankruptcy, reduction="none")
    bankruptcy_loss = mean(entropy if allowed is None else entropy * allowed.gather(1, action.unsqueeze(1)).squeeze(1))
    q_values = heads.q_values(penalty)
    possible = masked(q_values, None if allowed is None else allowed.scatter(1, action.unsqueeze(1), True))
    conservative = mean(functional.cross_entropy(possible, action, reduction="none"))
    total = td_weight * (quality_loss + bankruptcy_loss) + cql_alpha * conservative
    with torch.no_grad():
        logged = q_values.gather(1, action.unsqueeze(1)).squeeze(1)
        q_gap = possible.amax(dim=1) - logged
    return CqlLoss(total, quality_loss, bankruptcy_loss, conservative, logged.mean(), q_gap.mean())


def to_numpy(network: ActionValueNetwork) -> QNetwork:
    """The same network for numpy inference; float32."""

    def array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return tensor.detach().cpu().numpy().astype(np.float32)

    def perceptron(head: ActionPerceptron) -> Perceptron:
        return Perceptron([(array(layer.weight).T.copy(), array(layer.bias)) for layer in head.linears()])

    heads = perceptron(network.quality), perceptron(network.bankruptcy)
    return QNetwork(*heads, network.num_context, float(network.estimate_weight.detach()))
