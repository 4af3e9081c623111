"""Both heads of a QNetwork as one network, for one state at a time: a third of the numpy calls.

The heads' hidden units stand side by side with zeros between them, and one more unit that is always 1 carries the
biases, so that a layer is one product. That is more arithmetic than two passes: for many states QNetwork is faster.
"""

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.policy import Layers, QNetwork

Array = NDArray[np.float32]


class FusedNetwork:
    """The outputs of both heads of a QNetwork, up to rounding."""

    def __init__(self, network: QNetwork) -> None:
        heads = network.quality.layers, network.bankruptcy.layers
        depth = max(len(layers) for layers in heads)
        pairs = list(zip(*(_deepened(layers, depth) for layers in heads), strict=True))
        joined = [_side_by_side(*layer, *other) for layer, other in pairs]
        # The heads share their inputs: context, own entries (the quality head has no weights for the last) and the 1.
        num_quality, num_context = len(network.quality.layers[0][0]), network.num_context
        of_quality, of_bankruptcy = joined[0][:num_quality], joined[0][num_quality:-1]
        of_bankruptcy[:num_quality] += of_quality
        self._of_context = np.concatenate([of_bankruptcy[:num_context], joined[0][-1:]])
        self._of_own = of_bankruptcy[num_context:]
        self._rest = [*joined[1:-1], joined[-1][:, :-1]]  # the last layer's 1 is for nobody

    def outputs(self, context: Array, own: Array) -> list[list[float]]:
        """context and a 1: [C + 1], own: [K, A] -> [K][2]: quality beyond the estimate, logit of a bankruptcy."""
        hidden = np.dot(own, self._of_own)
        hidden += np.dot(context, self._of_context)
        for weight in self._rest:
            hidden = np.dot(np.maximum(hidden, 0.0, out=hidden), weight)
        outputs: list[list[float]] = hidden.tolist()
        return outputs


def _deepened(layers: Layers, depth: int) -> Layers:
    """The same network with more layers: what ReLU has passed, the identity and ReLU pass on."""
    *hidden, last = layers
    width = len(last[0])
    identity = np.eye(width, dtype=np.float32), np.zeros(width, dtype=np.float32)
    return [*hidden, *[identity] * (depth - len(layers)), last]


def _side_by_side(weight: Array, bias: Array, other_weight: Array, other_bias: Array) -> Array:
    """[in + other in + 1, out + other out + 1]: the last input and output are the 1."""
    rows, columns = weight.shape
    joined = np.zeros((rows + len(other_weight) + 1, columns + len(other_bias) + 1), dtype=np.float32)
    joined[:rows, :columns], joined[rows:-1, columns:-1] = weight, other_weight
    joined[-1] = np.concatenate([bias, other_bias, [1.0]])
    return joined
