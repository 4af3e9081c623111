"""Transitions to training batches: rows in shuffled order, their states encoded as they are needed.

RLlib's stock reader builds an episode object a row; a table of all encoded states would be forty times the size of
the transitions. Here a batch is a few `take`s and one call of mdp.encode_state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.dataset import Dataset
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import Transitions
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, affordable, encode_state
from seqroute_ray.core.money import to_usd

BANKRUPT = "bankrupt"  # [N]
WEIGHTS = "weights"  # [N] of the rows in the loss, 1 where there are none
NEXT_ALLOWED = "next_allowed"  # [N, A] models that the money left can pay for in the next state

Batch = dict[str, NDArray[Any]]


class BatchSource(Protocol):
    """What a learner draws its batches from."""

    @property
    def state_dim(self) -> int: ...

    @property
    def num_actions(self) -> int: ...

    @property
    def network(self) -> dict[str, int]:
        """How a state falls into parts: settings of cql.make_network."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: IntArray) -> Batch:
        """RLlib's columns, BANKRUPT and NEXT_ALLOWED of some transitions, each [N, ...]."""
        ...


@dataclass(frozen=True)
class RelabeledData:
    """The transitions of a relabeled dataset."""

    layout: StateLayout
    turns: TurnFeatures
    transitions: Transitions

    @classmethod
    def of(cls, dataset: Dataset) -> "RelabeledData":
        """Raises DataError on an action or a number that cannot be."""
        t, num_models = dataset.transitions, len(dataset.catalog)
        if len(t) == 0:
            raise DataError("the dataset has no transitions; were all turns without a judgement?")
        if t.action.min() < 0 or t.action.max() >= num_models:
            raise DataError(
                f"actions must be in [0, {num_models}), got {t.action.min()}..{t.action.max()}; relabel again"
            )
        last_row = int(np.max(t.turn_row + ~t.terminated))  # a transition that goes on needs the row after its own
        if t.turn_row.min() < 0 or last_row >= len(dataset.turns):
            raise DataError(
                f"turn rows must be in [0, {len(dataset.turns)}), got {t.turn_row.min()}..{last_row}; relabel again"
            )
        numbers = {"reward": t.reward, "history": dataset.turns.history, **vars(dataset.turns.estimates)}
        for name, values in numbers.items():
            if not np.isfinite(values).all():
                raise DataError(f"the dataset holds a {name} that is not finite; relabel again")
        return cls(dataset.layout, dataset.turns, t)

    @property
    def state_dim(self) -> int:
        return self.layout.state_dim

    @property
    def num_actions(self) -> int:
        return self.layout.num_models

    @property
    def network(self) -> dict[str, int]:
        return {"num_context": self.layout.num_context, "num_after": NUM_AFTER, "num_risk": NUM_RISK}

    def __len__(self) -> int:
        return len(self.transitions)

    def batch(self, rows: IntArray) -> Batch:
        t = self.transitions.take(rows)
        remaining_usd = to_usd(t.remaining_nusd)
        # A terminated row has no next state: its own turn stands in, and `terminated` takes it out of the target.
        following = self.turns.take(np.where(t.terminated, t.turn_row, t.turn_row + 1))
        next_usd = np.where(t.terminated, remaining_usd, to_usd(t.remaining_nusd - t.cost_nusd))
        return {
            Columns.OBS: encode_state(self.layout, self.turns.take(t.turn_row), remaining_usd, t.turn),
            Columns.NEXT_OBS: encode_state(self.layout, following, next_usd, t.turn + 1),
            NEXT_ALLOWED: affordable(following.estimates.cost_usd, following.estimates.cost_high_usd, next_usd),
            Columns.ACTIONS: t.action.astype(np.int64),
            Columns.REWARDS: np.where(t.bankrupt, np.float32(0), t.reward),  # quality; bankruptcy is a head of its own
            BANKRUPT: t.bankrupt.astype(np.float32),
            Columns.TERMINATEDS: t.terminated,
        }


@dataclass(frozen=True)
class ShuffledRows:
    """One learner's share of the transitions. Holds an object reference only: cheap to ship to a remote learner."""

    data_ref: Any  # ray.ObjectRef of BatchSource
    num_rows: int
    shard: int
    num_shards: int
    seed: int

    def iter_torch_batches(self, *, batch_size: int, device: str | None = None, **_ignored: Any) -> "ShuffledBatches":
        """The interface of ray.data.DataIterator that RLlib's learners call."""
        return ShuffledBatches(self, batch_size, device)


class ShuffledBatches:
    """Epochs of minibatches, reshuffled globally each epoch; each iteration is one epoch."""

    def __init__(self, source: ShuffledRows, batch_size: int, device: str | None) -> None:
        if batch_size * source.num_shards > source.num_rows:
            raise DataError(
                f"a batch of {batch_size} for each of {source.num_shards} learners needs more than the "
                f"{source.num_rows} transitions there are; lower --batch-size"
            )
        self._source, self._batch_size, self._epoch = source, batch_size, 0
        self._device = torch.device(device or "cpu")
        self._data: BatchSource = ray.get(source.data_ref)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        source = self._source
        rng = np.random.default_rng([source.seed, self._epoch])
        self._epoch += 1
        per_shard = source.num_rows // source.num_shards
        order = rng.permutation(source.num_rows)[source.shard * per_shard : (source.shard + 1) * per_shard]
        for start in range(0, per_shard - self._batch_size + 1, self._batch_size):
            batch = self._data.batch(order[start : start + self._batch_size])
            yield {
                f"{DEFAULT_MODULE_ID}/{name}": torch.from_numpy(values).to(self._device)
                for name, values in batch.items()
            }
