"""Start a training from the network of an earlier policy instead of random weights."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.policy import HEADS, PolicyArtefact, QNetwork
from seqroute_ray.training.rllib import DiscreteCQL

PLACES = ("network.networks.0.", "target_network.networks.0.")  # of QModule's state


def start_from(algorithm: DiscreteCQL, policy: Path) -> None:
    """Put the policy's network in place of the online and the target network. Raises ArtefactError, ConfigError."""
    state = algorithm.learner_group.get_state(components="learner/rl_module")
    weights = state["learner"]["rl_module"][DEFAULT_MODULE_ID]
    for name, array in named_weights(PolicyArtefact.load(policy).network).items():
        for place in PLACES:
            shape = np.shape(weights[place + name]) if place + name in weights else None
            if shape != array.shape:
                raise ConfigError(
                    f"init_from {policy}: its {name} has shape {array.shape}, this training's {shape}; give the same "
                    "--cql.hidden and --cql.risk-hidden and logs of the same types of task, or leave init_from out"
                )
            weights[place + name] = array
    algorithm.learner_group.set_state({"learner": state["learner"]})


def named_weights(network: QNetwork) -> dict[str, NDArray[np.float32]]:
    """By their names in an ActionValueNetwork; undoes cql.to_numpy."""
    named = {"estimate_weight": np.array(network.estimate_weight, dtype=np.float32)}
    for head in HEADS:
        for i, (weight, bias) in enumerate(getattr(network, head).layers):
            named |= {f"{head}.layers.{i}.weight": weight.T.copy(), f"{head}.layers.{i}.bias": bias}
    return named
