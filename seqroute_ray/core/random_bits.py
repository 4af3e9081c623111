"""Counter-based random numbers: each a pure function of a key and a position.

A generator's stream depends on who drew from it before; these do not, so a session's draws are the same whichever
worker, batch or version of numpy makes them. SplitMix64: Steele, Lea and Flood, OOPSLA 2014.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.arrays import IntArray

Bits = NDArray[np.uint64]
STEP, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def text_keys(seed: int, texts: Iterable[str]) -> Bits:
    """[N] a key for each text, under a seed."""
    digests = b"".join(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def bits(key: Bits, position: IntArray | int) -> Bits:
    """64 random bits, which may serve as a key again; arguments broadcast."""
    z = key + (np.atleast_1d(position).astype(np.uint64) + np.uint64(1)) * STEP  # modulo 2**64
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(key: Bits, position: IntArray | int) -> NDArray[np.float64]:
    """Uniform in [0, 1); arguments broadcast."""
    return np.asarray((bits(key, position) >> np.uint64(11)) * 2.0**-53)
