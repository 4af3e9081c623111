import numpy as np

from seqroute_ray.core.random_bits import bits, text_keys, uniform


def test_the_stream_of_key_zero_is_splitmix64() -> None:
    """The first outputs of the reference implementation with seed 0."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits(np.zeros(1, dtype=np.uint64), np.arange(3)).tolist() == first


def test_numbers_are_uniform_and_independent_over_positions_and_keys() -> None:
    u = uniform(text_keys(0, map(str, range(400)))[:, None], np.arange(400))
    assert (u >= 0).all()
    assert (u < 1).all()
    counts = np.bincount((u * 20).astype(int).reshape(-1), minlength=20)
    assert np.square(counts - 8000).sum() / 8000 < 45  # chi-square, 19 degrees: beyond 45 one time in a thousand
    for a, b in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):
        assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 0.01


def test_keys_depend_on_seed_and_text_alone() -> None:
    assert text_keys(0, ["a", "b"]).tolist() == [*text_keys(0, ["a"]), *text_keys(0, ["b"])]
    assert text_keys(0, ["a"]) != text_keys(1, ["a"])
