"""Transitions drawn stratum by stratum: rare ones (hard turns, bankruptcies) as often as common ones.

What is drawn more often weighs less in the loss, so that the values learned are those of the data: bankruptcy is an
outcome, and outcomes drawn more often than they occur would be believed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.strata import NUM_STRATA, importance_weights
from seqroute_ray.training.reader import WEIGHTS, Batch, BatchSource


class Rows(Protocol):
    """Row numbers, in memory or on the disk."""

    def __len__(self) -> int: ...

    def take(self, places: IntArray, /) -> IntArray: ...


@dataclass(frozen=True)
class Stratified:
    """A BatchSource of virtual rows: row r is of stratum r modulo S, each of which comes round as often as it must."""

    source: BatchSource
    rows: tuple[Rows, ...]  # [S] rows of the source in each stratum that occurs
    weights: FloatArray  # [S]

    @classmethod
    def of(cls, source: BatchSource, stratum: IntArray) -> "Stratified":
        """stratum: [M] of the source's rows."""
        return cls.of_rows(source, [np.flatnonzero(stratum == s) for s in range(NUM_STRATA)])

    @classmethod
    def of_rows(cls, source: BatchSource, rows: Sequence[Rows]) -> "Stratified":
        """rows: [NUM_STRATA] of the source in each stratum."""
        counts = np.array([len(own) for own in rows])
        occurring = counts > 0
        return cls(source, tuple(own for own in rows if len(own)), importance_weights(counts)[occurring])

    @property
    def state_dim(self) -> int:
        return self.source.state_dim

    @property
    def num_actions(self) -> int:
        return self.source.num_actions

    @property
    def network(self) -> dict[str, int]:
        return self.source.network

    def __len__(self) -> int:
        return len(self.rows) * max(map(len, self.rows))

    def batch(self, rows: IntArray) -> Batch:
        stratum, position = rows % len(self.rows), rows // len(self.rows)
        drawn, longest = np.empty(len(rows), dtype=np.int64), max(map(len, self.rows))
        for s, own in enumerate(self.rows):
            here = stratum == s
            drawn[here] = own.take(position[here] * len(own) // longest)  # repeats spread evenly over the stratum
        return {**self.source.batch(drawn), WEIGHTS: self.weights[stratum].astype(np.float32)}
