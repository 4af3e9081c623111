"""How long to wait before asking a provider again: exponential backoff with full jitter.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

import numpy as np

BASE_S = 0.25  # most of a first wait; a client waits for it
MAX_S = 8.0  # of any wait


def backoff_s(num_failed: int, rng: np.random.Generator, retry_after_s: float | None = None) -> float:
    """Seconds before the next try, after num_failed >= 1 tries.

    A wait that the provider asks for is kept, and lengthened by up to BASE_S: those it turned away together would
    come back together.
    """
    if retry_after_s is not None:
        return retry_after_s + rng.uniform(0, BASE_S)
    doublings = min(num_failed - 1, 32)  # 2**1024 is no float
    return float(rng.uniform(0, min(MAX_S, BASE_S * 2**doublings)))
