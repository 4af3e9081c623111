"""Discrete conservative Q-learning: the network and the loss, in plain torch.

The conservative term logsumexp(Q) - Q[a] is the cross entropy of softmax(Q) at the logged action, so one loss covers
three learners: alpha = 0 is double DQN, td_weight = 0 is behaviour cloning, both together are CQL.
Source: Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779, equation 4 (discrete CQL(H)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seqroute_ray.core.policy import QNetwork


@dataclass(frozen=True)
class CqlLoss:
    """The parts of the loss, each a scalar."""

    total: Tensor
    td: Tensor
    conservative: Tensor


def q_network(state_dim: int, hidden: Sequence[int], num_actions: int) -> nn.Sequential:
    """A ReLU multi-layer perceptron [N, state_dim] -> [N, num_actions]."""
    sizes = [state_dim, *hidden]
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_actions))


def td_target(
    reward: Tensor, terminated: Tensor, next_q: Tensor, next_q_target: Tensor, next_allowed: Tensor, gamma: float
) -> Tensor:
    """Double-Q target [N]: the online network picks among allowed [N, A] next actions, the target network values it."""
    best = next_q.masked_fill(~next_allowed, -torch.inf).argmax(dim=1, keepdim=True)
    value = next_q_target.gather(1, best).squeeze(1)
    return reward + gamma * (~terminated) * value


def cql_loss(q_values: Tensor, action: Tensor, target: Tensor, td_weight: float, cql_alpha: float) -> CqlLoss:
    """Squared TD error plus the conservative term; q_values [N, A], action [N] int64, target [N] without gradient."""
    chosen = q_values.gather(1, action.unsqueeze(1)).squeeze(1)
    td = functional.mse_loss(chosen, target)  # not Huber: it would count a rare bankruptcy too little
    conservative = functional.cross_entropy(q_values, action)
    return CqlLoss(td_weight * td + cql_alpha * conservative, td, conservative)


def to_numpy(network: nn.Sequential) -> QNetwork:
    """The same network for numpy inference; float32."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]

    def array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return tensor.detach().cpu().numpy().astype(np.float32)

    return QNetwork([(array(layer.weight).T.copy(), array(layer.bias)) for layer in linear])
