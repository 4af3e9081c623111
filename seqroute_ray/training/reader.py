"""Batches for a learner: rows in an order that is new each epoch, encoded as they are needed, one batch ahead.

RLlib's stock reader builds an episode object a row. Here a batch is a few `take`s and one call of mdp.encode_state,
made by a thread while the learner works on the batch before. The n-th batch of a learner is a function of the seed
and of n: training goes on after a restart where it was.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.mdp import NUM_MONEY
from seqroute_ray.training.permutation import Permutation

BANKRUPT = "bankrupt"  # [N]; without it no transition is
WEIGHTS = "weights"  # [N] of the rows in the loss; without it all count alike
ALLOWED, NEXT_ALLOWED = "action_mask", "next_action_mask"  # [N, A] in the present and the next state; without: all

# Batches in the making, a thread each: one keeps up with a learner on a CPU, which a GPU leaves behind.
NUM_AHEAD = {"cpu": 1, "cuda": 2}

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
        """RLlib's columns, and those above, of some transitions, each [N, ...]."""
        ...


@dataclass(frozen=True)
class ShuffledRows:
    """One learner's share of the transitions. Holds an object reference only: cheap to ship to a remote learner."""

    source_ref: Any  # ray.ObjectRef of a function that opens the BatchSource
    num_rows: int
    shard: int
    num_shards: int
    seed: int
    history_noise: float = 0.0  # see CqlConfig

    def iter_torch_batches(
        self, *, batch_size: int, device: str | None = None, first_batch: int = 0, **_ignored: Any
    ) -> "ShuffledBatches":
        """The interface of ray.data.DataIterator that RLlib's learners call."""
        open_source: Callable[[], BatchSource] = ray.get(self.source_ref)
        return ShuffledBatches(self, open_source(), batch_size, torch.device(device or "cpu"), first_batch)


class ShuffledBatches:
    """Minibatches from first_batch on; each iteration is (the rest of) one epoch, reshuffled globally."""

    def __init__(
        self, rows: ShuffledRows, source: BatchSource, batch_size: int, device: torch.device, first_batch: int
    ) -> None:
        check_batch_size(batch_size, rows.num_shards, rows.num_rows)
        self._rows, self._source, self._batch_size, self._device = rows, source, batch_size, device
        self._rows_per_shard = rows.num_rows // rows.num_shards
        self._batches_per_epoch = self._rows_per_shard // batch_size
        parts = source.network
        self._noisy = slice(NUM_MONEY, parts["num_context"]) if "num_context" in parts else slice(0)
        num_ahead = NUM_AHEAD.get(device.type, 1)
        self._threads, self._next = ThreadPoolExecutor(num_ahead), first_batch
        self._ahead = deque(self._threads.submit(self._batch, first_batch + i) for i in range(num_ahead))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self._next % self._batches_per_epoch, self._batches_per_epoch):
            batch = self._ahead.popleft().result()
            self._next += 1
            self._ahead.append(self._threads.submit(self._batch, self._next + len(self._ahead)))
            yield batch

    def _batch(self, index: int) -> dict[str, torch.Tensor]:
        return {f"{DEFAULT_MODULE_ID}/{name}": self._tensor(values) for name, values in self._arrays(index).items()}

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # From pinned memory the copy queues behind the learner's work; from other memory this thread would wait for it.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _arrays(self, index: int) -> Batch:
        rows, (epoch, place) = self._rows, divmod(index, self._batches_per_epoch)
        first = rows.shard * self._rows_per_shard + place * self._batch_size
        order = Permutation(rows.num_rows, rows.seed, epoch)
        batch = self._source.batch(order.at(np.arange(first, first + self._batch_size)))
        if rows.history_noise:
            # The same sessions come back under thousands of budgets, and a network that knows them by their history
            # expects their outcomes instead of typical ones.
            rng = np.random.default_rng([rows.seed, rows.shard, index])
            history = batch[Columns.OBS][:, self._noisy]
            noise = rows.history_noise * rng.standard_normal(history.shape, dtype=np.float32)
            history += noise
            batch[Columns.NEXT_OBS][:, self._noisy] += noise
        return batch


def check_batch_size(batch_size: int, num_shards: int, num_rows: int) -> None:
    """Raises ConfigError when an epoch has no batch for each learner."""
    if batch_size * num_shards > num_rows:
        raise ConfigError(
            f"a batch of {batch_size} for each of {num_shards} learners needs more than the "
            f"{num_rows} transitions there are; lower the batch size"
        )
