"""Strata of transitions: how hard a turn is for the pool, and whether the transition bankrupts.

Difficulty by boundary-guided routing's taxonomy (arXiv:2602.21227), of one turn: easy where the cheapest model of the
pool solves it, hard where only the strongest does, intractable where neither does.
"""

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray

DIFFICULTIES = ("easy", "hard", "intractable", "unknown")
NUM_STRATA = 2 * len(DIFFICULTIES)
SOLVED = 0.5  # quality above this
UNKNOWN = DIFFICULTIES.index("unknown")


def difficulty(outcome_quality: NDArray[np.floating], cheapest: int, strongest: int) -> NDArray[np.int8]:
    """[N] index into DIFFICULTIES, of turns with the models' qualities [N, K]; NaN: not judged."""
    weak, strong = outcome_quality[:, cheapest], outcome_quality[:, strongest]
    known = np.isfinite(weak) & (np.isfinite(strong) | (weak > SOLVED))
    return np.select([~known, weak > SOLVED, strong > SOLVED], [UNKNOWN, 0, 1], 2).astype(np.int8)


def strata(turn_difficulty: IntArray, bankrupt: NDArray[np.bool_]) -> IntArray:
    """[M] stratum of transitions, by their turn's difficulty [M]; the odd ones bankrupt."""
    return (2 * turn_difficulty + bankrupt).astype(np.int64)


def stratum_names() -> list[tuple[str, bool]]:
    """[NUM_STRATA] difficulty and whether it bankrupts."""
    return [(name, bankrupt) for name in DIFFICULTIES for bankrupt in (False, True)]


def importance_weights(counts: IntArray) -> FloatArray:
    """[NUM_STRATA] weights that give back the data's own shares where each stratum that occurs is drawn equally often.

    They average 1 over draws; 0 for a stratum that does not occur.
    """
    return np.asarray(counts / counts.sum() * np.count_nonzero(counts)) if counts.sum() else np.zeros(len(counts))
