"""Transitions to training batches: states are encoded once, column by column, then served shuffled by index.

RLlib's stock reader builds an episode object a row; here a batch is one `index_select` a column.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import Dataset
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.mdp import affordable, encode_state
from seqroute_ray.core.money import to_usd

BANKRUPT = "bankrupt"  # [N]
NEXT_ALLOWED = "next_allowed"  # [N, A] models that the money left can pay for in the next state

TrainingColumns = dict[str, NDArray[Any]]  # the first layout.num_features entries of a state are estimates


def training_columns(dataset: Dataset) -> TrainingColumns:
    """All transitions as RLlib's columns [M, ...]. Raises DataError on an action or a number that cannot be."""
    t, num_models = dataset.transitions, len(dataset.catalog)
    if len(t) == 0:
        raise DataError("the dataset has no transitions; were all turns without a judgement?")
    if t.action.min() < 0 or t.action.max() >= num_models:
        raise DataError(f"actions must be in [0, {num_models}), got {t.action.min()}..{t.action.max()}; relabel again")
    remaining_usd = to_usd(t.remaining_nusd)
    state = encode_state(dataset.layout, dataset.features[t.turn_row], remaining_usd, t.turn, t.previous_action)
    # A terminated row has no next state: its own turn stands in, and `terminated` takes it out of the target.
    next_row = np.where(t.terminated, t.turn_row, t.turn_row + 1)
    next_usd = np.where(t.terminated, remaining_usd, to_usd(t.remaining_nusd - t.cost_nusd))
    next_state = encode_state(dataset.layout, dataset.features[next_row], next_usd, t.turn + 1, t.action)
    columns = {
        Columns.OBS: state,
        Columns.NEXT_OBS: next_state,
        NEXT_ALLOWED: affordable(dataset.cost_high_usd[next_row], next_usd),
        Columns.ACTIONS: t.action.astype(np.int64),
        Columns.REWARDS: np.where(t.bankrupt, np.float32(0), t.reward),  # quality; the learner prices bankruptcy itself
        BANKRUPT: t.bankrupt.astype(np.float32),
        Columns.TERMINATEDS: t.terminated,
    }
    for name in (Columns.OBS, Columns.NEXT_OBS, Columns.REWARDS):
        if not np.isfinite(columns[name]).all():
            raise DataError(f"the dataset gives a {name} that is not finite; relabel again")
    return columns


@dataclass(frozen=True)
class ShuffledColumns:
    """One learner's share of the columns. Holds an object reference only: cheap to ship to a remote learner."""

    columns_ref: Any  # ray.ObjectRef of TrainingColumns
    num_rows: int
    shard: int
    num_shards: int
    seed: int

    def iter_torch_batches(self, *, batch_size: int, device: str | None = None, **_ignored: Any) -> "ShuffledBatches":
        """The interface of ray.data.DataIterator that RLlib's learners call."""
        return ShuffledBatches(self, batch_size, device)


class ShuffledBatches:
    """Epochs of minibatches, reshuffled globally each epoch; each iteration is one epoch."""

    def __init__(self, source: ShuffledColumns, batch_size: int, device: str | None) -> None:
        if batch_size * source.num_shards > source.num_rows:
            raise DataError(
                f"a batch of {batch_size} for each of {source.num_shards} learners needs more than the "
                f"{source.num_rows} transitions there are; lower --batch-size"
            )
        self._source, self._batch_size, self._epoch = source, batch_size, 0
        self._device = torch.device(device or "cpu")
        columns = ray.get(source.columns_ref)
        # Copies out of Ray's read-only memory: torch tensors must own writable memory.
        self._tensors = {name: torch.tensor(values, device=self._device) for name, values in columns.items()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        source = self._source
        generator = torch.Generator().manual_seed(source.seed * 1_000_003 + self._epoch)
        self._epoch += 1
        per_shard = source.num_rows // source.num_shards
        order = torch.randperm(source.num_rows, generator=generator)
        order = order[source.shard * per_shard : (source.shard + 1) * per_shard].to(self._device)
        for start in range(0, per_shard - self._batch_size + 1, self._batch_size):
            index = order[start : start + self._batch_size]
            yield {
                f"{DEFAULT_MODULE_ID}/{name}": values.index_select(0, index) for name, values in self._tensors.items()
            }
