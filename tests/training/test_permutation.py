"""A permutation that nobody stores: every row once, in an order that looks like none."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.training.permutation import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_row_comes_once(num_rows: int, seed: int, epoch: int) -> None:
    order = Permutation(num_rows, seed, epoch).at(np.arange(num_rows))
    assert sorted(order.tolist()) == list(range(num_rows))


def test_a_stretch_of_it_is_the_same_as_in_the_whole() -> None:
    order = Permutation(10_000, 3, 1)
    np.testing.assert_array_equal(order.at(np.arange(4000, 4100)), order.at(np.arange(10_000))[4000:4100])


def test_seeds_and_epochs_differ_and_repeat() -> None:
    places = np.arange(5000)
    first = Permutation(5000, 0, 0).at(places)
    np.testing.assert_array_equal(first, Permutation(5000, 0, 0).at(places))
    for other in (Permutation(5000, 0, 1), Permutation(5000, 1, 0)):
        assert (first == other.at(places)).mean() < 0.01


def test_batches_are_drawn_from_everywhere() -> None:
    # Of a true shuffle, means of 100 batches of 1,000 rows in [0, 1) have deviation 1 / sqrt(12 * 1000) and neighbours
    # are uncorrelated.
    place = Permutation(100_000, 0, 0).at(np.arange(100_000)) / 100_000
    means = place.reshape(100, 1000).mean(axis=1)
    assert abs(means.std() * np.sqrt(12_000) - 1) < 0.3
    assert abs(np.corrcoef(place[:-1], place[1:])[0, 1]) < 0.01
