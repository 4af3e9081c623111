"""Replayed tasks as training batches: the reader of `core.attempt_mdp`."""

from dataclasses import dataclass

from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.attempt_estimates import AttemptEstimates
from seqroute_ray.core.attempt_mdp import NUM_AFTER, NUM_CONTEXT, TaskTransitions, encode_task_state
from seqroute_ray.core.policy import QNetwork
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.ensemble import mean_network
from seqroute_ray.training.reader import ALLOWED, NEXT_ALLOWED, Batch
from seqroute_ray.training.train import train_network

NO_PENALTY = 0.0  # running out of money costs nothing but the success that is missed


@dataclass(frozen=True)
class AttemptData:
    """The transitions of replayed tasks."""

    estimates: AttemptEstimates
    transitions: TaskTransitions
    reference_usd: float

    @property
    def num_actions(self) -> int:
        return int(self.transitions.states.tried.shape[1])

    @property
    def state_dim(self) -> int:
        return NUM_CONTEXT + self.num_actions * (1 + NUM_AFTER)

    @property
    def network(self) -> dict[str, int]:
        return {"num_context": NUM_CONTEXT, "num_after": NUM_AFTER, "num_risk": 0}

    def __len__(self) -> int:
        return len(self.transitions)

    def batch(self, rows: IntArray) -> Batch:
        t = self.transitions
        states, following = t.states.take(rows), t.following.take(rows)
        return {
            Columns.OBS: encode_task_state(self.estimates, states, self.reference_usd)[0],
            Columns.NEXT_OBS: encode_task_state(self.estimates, following, self.reference_usd)[0],
            ALLOWED: states.allowed,
            NEXT_ALLOWED: following.allowed,
            Columns.ACTIONS: t.action[rows],
            Columns.REWARDS: t.reward[rows],
            Columns.TERMINATEDS: t.terminated[rows],
        }


def train_attempts(data: AttemptData, config: CqlConfig) -> QNetwork:
    """Discrete CQL on replayed tasks. Ray must be initialised."""
    return mean_network(train_network(data, config, NO_PENALTY, lambda _done, _total, _losses: None))
