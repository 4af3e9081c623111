"""A random order of rows of which any stretch can be asked for: nothing of it is stored, however many rows there are.

A Feistel network permutes the numbers below a power of 4; those beyond the last row are permuted again until they
fall among the rows. Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
"""

from dataclasses import dataclass

import numpy as np

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.random_bits import MIX_1, MIX_2, Bits, bits

NUM_ROUNDS = 4  # enough for a strong pseudo-random permutation: Luby and Rackoff, 1988


@dataclass(frozen=True)
class Permutation:
    """One order of the numbers below num_rows; another seed or epoch, another order."""

    num_rows: int
    seed: int
    epoch: int

    def at(self, positions: IntArray) -> IntArray:
        """[N] the rows at some places of the order, each in [0, num_rows)."""
        half_bits = np.uint64(max(1, (int(self.num_rows - 1).bit_length() + 1) // 2))
        keys = bits(bits(np.array([self.seed], dtype=np.uint64), self.epoch), np.arange(NUM_ROUNDS))
        rows = _encrypt(positions.astype(np.uint64), half_bits, keys)
        while (beyond := np.flatnonzero(rows >= self.num_rows)).size:
            rows[beyond] = _encrypt(rows[beyond], half_bits, keys)
        return rows.astype(np.int64)


def _encrypt(numbers: Bits, half_bits: np.uint64, keys: Bits) -> Bits:
    """A permutation of the numbers below 4 ** half_bits."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = numbers >> half_bits, numbers & mask
    for key in keys:
        mixed = (right ^ key) * MIX_1  # modulo 2**64
        mixed ^= mixed >> np.uint64(32)
        mixed *= MIX_2
        mixed >>= np.uint64(64) - half_bits  # the high bits depend on all others
        mixed ^= left
        left, right = right, mixed
    return (left << half_bits) | right
