"""Stratified drawing: every stratum alike, every row once an epoch, and the same mean loss."""

from dataclasses import dataclass

import numpy as np
import torch

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.training.cql import Heads, Targets, cql_loss
from seqroute_ray.training.reader import WEIGHTS, Batch
from seqroute_ray.training.stratified import Stratified

STRATUM = np.array([0] * 70 + [1] * 20 + [5] * 10)


@dataclass(frozen=True)
class Numbered:
    """A source whose batches say which rows were drawn."""

    state_dim: int = 1
    num_actions: int = 2

    @property
    def network(self) -> dict[str, int]:
        return {}

    def __len__(self) -> int:
        return len(STRATUM)

    def batch(self, rows: IntArray) -> Batch:
        return {"row": rows}


def test_an_epoch_draws_every_row_and_every_stratum_equally_often() -> None:
    source = Stratified.of(Numbered(), STRATUM)
    drawn = source.batch(np.arange(len(source)))["row"]
    assert len(source) == 3 * 70
    assert set(drawn.tolist()) == set(range(100))
    assert np.bincount(STRATUM[drawn])[[0, 1, 5]].tolist() == [70, 70, 70]
    times = np.bincount(drawn)[STRATUM == 1]  # 20 rows for 70 draws
    assert set(times.tolist()) == {3, 4}
    assert abs(int(times[:10].sum()) - int(times[10:].sum())) <= 1  # neither half of a stratum is preferred


def test_weighted_means_are_those_of_the_data() -> None:
    source, value = Stratified.of(Numbered(), STRATUM), np.random.default_rng(0).normal(size=100)
    batch = source.batch(np.arange(3 * 70 * 20) % len(source))
    by_stratum = [value[s == STRATUM].mean() for s in (0, 1, 5)]
    assert batch[WEIGHTS].mean() == np.float32(1)
    np.testing.assert_allclose(np.mean(batch[WEIGHTS] * value[batch["row"]]), np.dot(by_stratum, [0.7, 0.2, 0.1]), 0.2)


def test_the_loss_weighs_rows() -> None:
    heads = Heads(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2))
    targets, action = Targets(torch.zeros(2), torch.tensor([0.0, 1.0])), torch.tensor([0, 0])
    equal = cql_loss(heads, action, targets, 1.0, 0.1, 2.0)
    ones = cql_loss(heads, action, targets, 1.0, 0.1, 2.0, weight=torch.ones(2))
    first = cql_loss(heads, action, targets, 1.0, 0.1, 2.0, weight=torch.tensor([2.0, 0.0]))
    assert ones.total == equal.total
    assert (first.quality.item(), equal.quality.item()) == (1.0, 2.5)
