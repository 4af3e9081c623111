"""Networks that learn side by side from the same batches, each towards its own target; their mean is the policy.

They differ by their initial weights alone. Where the data say little they disagree, and their mean errs less than one.
Source: An Optimistic Perspective on Offline Reinforcement Learning, arXiv:1907.04543 (Ensemble-DQN).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqroute_ray.core.policy import Perceptron, QNetwork
from seqroute_ray.training.cql import ActionValueNetwork, Network, make_network, to_numpy


class Ensemble(nn.Module):
    """[N, state_dim] -> [N, 2 num_actions], see cql.Heads: the mean of its networks' outputs, logits among them."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def each(self, state: Tensor) -> Tensor:
        """[M, N, 2 num_actions] of M networks."""
        return torch.stack([network(state) for network in self.networks])

    def forward(self, state: Tensor) -> Tensor:
        return self.each(state).mean(dim=0)


def make_ensemble(state_dim: int, num_actions: int, settings: Mapping[str, Any]) -> Ensemble:
    """`ensemble_size` (1) networks by the other settings, see make_network."""
    size = settings.get("ensemble_size", 1)
    return Ensemble([make_network(state_dim, num_actions, settings) for _ in range(size)])


def mean_network(ensemble: Ensemble) -> QNetwork:
    """The mean of the networks as one network for numpy, their hidden units side by side: artefacts know no ensembles.

    Raises TypeError where states have no parts: such networks have no form in numpy.
    """
    networks = []
    for network in ensemble.networks:
        if not isinstance(network, ActionValueNetwork):
            raise TypeError(f"only an ActionValueNetwork becomes a policy, got {type(network).__name__}")
        networks.append(to_numpy(network))
    first, *others = networks
    if not others:
        return first
    return QNetwork(
        _mean_perceptron([network.quality for network in networks]),
        _mean_perceptron([network.bankruptcy for network in networks]),
        first.num_context,
        float(np.mean([network.estimate_weight for network in networks])),
    )


def _mean_perceptron(perceptrons: Sequence[Perceptron]) -> Perceptron:
    layers = list(zip(*(perceptron.layers for perceptron in perceptrons), strict=True))
    weights = [[weight for weight, _ in layer] for layer in layers]
    biases = [np.concatenate([bias for _, bias in layer]) for layer in layers[:-1]]
    mean_bias = np.mean([bias for _, bias in layers[-1]], axis=0)
    joined = [
        np.concatenate(weights[0], axis=1),  # all see the same inputs
        *(_block_diagonal(blocks) for blocks in weights[1:-1]),
        np.concatenate(weights[-1]) / np.float32(len(perceptrons)),
    ]
    return Perceptron(list(zip(joined, [*biases, mean_bias], strict=True)))


def _block_diagonal(blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    ends = np.cumsum([(0, 0), *(block.shape for block in blocks)], axis=0)
    joined = np.zeros(ends[-1], dtype=np.float32)
    for (row, column), (last_row, last_column), block in zip(ends[:-1], ends[1:], blocks, strict=True):
        joined[row:last_row, column:last_column] = block
    return joined
