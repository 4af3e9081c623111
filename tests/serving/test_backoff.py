import numpy as np
import pytest

from seqroute_ray.serving.backoff import BASE_S, MAX_S, backoff_s


@pytest.mark.parametrize(
    ("num_failed", "most_s"), [(1, BASE_S), (2, 2 * BASE_S), (4, 8 * BASE_S), (9, MAX_S), (10**6, MAX_S)]
)
def test_waits_are_spread_evenly_from_nothing_to_a_doubling_limit(num_failed: int, most_s: float) -> None:
    rng = np.random.default_rng(0)
    waits_s = np.array([backoff_s(num_failed, rng) for _ in range(2000)])
    assert waits_s.min() >= 0
    assert waits_s.max() <= most_s
    assert np.allclose(
        np.quantile(waits_s, [0.25, 0.5, 0.75]), most_s * np.array([0.25, 0.5, 0.75]), atol=0.05 * most_s
    )


def test_a_wait_that_the_provider_asks_for_is_kept_and_spread() -> None:
    rng = np.random.default_rng(0)
    waits_s = [backoff_s(5, rng, retry_after_s=3.0) for _ in range(100)]
    assert 3.0 <= min(waits_s) < max(waits_s) <= 3.0 + BASE_S
