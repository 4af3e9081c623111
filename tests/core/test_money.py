"""Money: exact inside, nearest nano-dollar at the edges."""

from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.core.money import NUSD_PER_USD, to_nusd, to_usd

MILLION_USD = 10**6 * NUSD_PER_USD  # more than any turn may cost


@given(st.integers(-MILLION_USD, MILLION_USD))
def test_nano_dollars_survive_the_way_to_usd_and_back(amount_nusd: int) -> None:
    assert int(to_nusd(to_usd(amount_nusd))) == amount_nusd


@given(st.floats(-1000.0, 1000.0))
def test_usd_become_the_nearest_nano_dollars(amount_usd: float) -> None:
    distance = abs(Decimal(amount_usd) * NUSD_PER_USD - int(to_nusd(amount_usd)))
    assert distance <= Decimal("0.5001")  # the product itself is rounded once


def test_amounts_worked_by_hand() -> None:
    amounts_usd = np.array([[1.4e-9, 1.6e-9], [0.0, 0.001]])
    assert to_nusd(amounts_usd).tolist() == [[1, 2], [0, 1_000_000]]
    assert to_usd(np.array([1, 2_500_000_000])).tolist() == [1e-9, 2.5]


def test_ten_dimes_are_a_dollar_in_nano_dollars_though_not_in_floats() -> None:
    dimes_usd = [0.1] * 10
    assert sum(dimes_usd) != 1.0
    assert int(to_nusd(np.array(dimes_usd)).sum()) == int(to_nusd(1.0))
