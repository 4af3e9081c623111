import numpy as np

from seqroute_ray.core.strata import NUM_STRATA, difficulty, importance_weights, strata, stratum_names


def test_difficulty_is_told_by_the_cheapest_and_the_strongest_model() -> None:
    nan = np.nan
    quality = np.array([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0, 0.5], [nan, 1, 1], [0, 1, nan], [1, 0, nan]])
    assert difficulty(quality, cheapest=0, strongest=2).tolist() == [0, 1, 2, 3, 3, 0]


def test_every_stratum_has_a_name() -> None:
    names, stratum = stratum_names(), strata(np.array([0, 0, 3]), np.array([False, True, True]))
    assert [names[s] for s in stratum] == [("easy", False), ("easy", True), ("unknown", True)]
    assert len(names) == NUM_STRATA


def test_weights_undo_equal_shares() -> None:
    counts = np.array([60, 30, 0, 10, 0, 0, 0, 0])
    weights = importance_weights(counts)
    assert weights[[0, 1, 3]].mean() == 1
    np.testing.assert_allclose(weights / weights.sum(), counts / counts.sum())
    assert importance_weights(np.zeros(NUM_STRATA, dtype=np.int64)).tolist() == [0.0] * NUM_STRATA
