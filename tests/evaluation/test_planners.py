"""The table by type of task, by hand."""

import numpy as np

from seqroute_ray.evaluation.planners import TypeTable

QUALITY = np.array([[1.0, 0.0], [0.0, np.nan], [0.5, 1.0], [np.nan, 0.0]])
COST_USD = np.array([[1.0, 4.0], [3.0, np.nan], [2.0, 8.0], [np.nan, 10.0]])


def test_the_table_holds_means_and_high_quantiles_of_what_was_measured() -> None:
    table = TypeTable.fit(np.array(["sums", "sums", "prose", "prose"]), QUALITY, COST_USD, quantile=0.75)
    seen = table.estimates_of(np.array(["prose", "sums"]))
    assert table.types == ("prose", "sums")
    assert seen.quality.tolist() == [[0.5, 0.5], [0.5, 0.0]]
    assert seen.cost_usd.tolist() == [[2.0, 9.0], [2.0, 4.0]]
    assert seen.cost_high_usd.tolist() == [[2.0, 9.5], [2.5, 4.0]]


def test_a_type_never_seen_and_a_pair_never_measured_count_as_the_mean_over_all_types() -> None:
    quality = np.where(np.arange(4)[:, None] < 2, np.array([np.nan, 0.0]), QUALITY)  # no sums by the first model
    table = TypeTable.fit(np.array(["sums", "sums", "prose", "prose"]), quality, COST_USD, quantile=0.75)
    unseen = table.estimates_of(np.array(["verse"]))
    assert unseen.quality.tolist() == [[0.5, 0.25]]
    assert unseen.cost_usd.tolist() == [[2.0, np.float32(22 / 3)]]
    assert table.estimates_of(np.array(["sums"])).quality.tolist() == [[0.5, 0.0]]
