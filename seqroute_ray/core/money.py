"""Money is exact: integer nano-dollars (`_nusd`) inside, USD (`_usd`) at the edges."""

import numpy as np

from seqroute_ray.core.arrays import FloatArray, IntArray

NUSD_PER_USD = 1_000_000_000


def to_nusd(amount_usd: FloatArray | float) -> IntArray:
    """Round USD to integer nano-dollars; any shape."""
    return np.rint(np.asarray(amount_usd, dtype=np.float64) * NUSD_PER_USD).astype(np.int64)


def to_usd(amount_nusd: IntArray | int) -> FloatArray:
    """Integer nano-dollars as float64 USD; any shape."""
    return np.asarray(amount_nusd, dtype=np.float64) / NUSD_PER_USD
