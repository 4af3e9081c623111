from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.evaluation.config import LAMBDA_GRID
from seqroute_ray.serving.knobs import KnobDefaults, Knobs, budget_to_nusd, lambda_of_quality, read_knobs
from seqroute_ray.serving.requests import RequestError

REFERENCE_USD = 0.05
NONE = KnobDefaults()


def read(headers: dict[str, str], defaults: KnobDefaults = NONE, **fields: Any) -> Knobs:
    return read_knobs(headers, defaults, REFERENCE_USD, **fields)


def test_headers_are_read_in_their_units() -> None:
    headers = {"x-session-budget-usd": "0.05", "x-lambda": "2.5", "x-max-turn-usd": "1e-3", "x-task-type": "sums"}
    assert read(headers) == Knobs(
        asked_budget_nusd=50_000_000,
        default_budget_nusd=None,
        lambda_per_usd=2.5,
        max_turn_nusd=1_000_000,
        task_type="sums",
    )


def test_without_headers_a_keys_defaults_hold_and_then_the_servers() -> None:
    server = KnobDefaults(session_budget_nusd=7, lambda_per_usd=3.0, max_turn_nusd=9)
    key = KnobDefaults(session_budget_nusd=5, lambda_per_usd=0.0)
    knobs = read({}, key.over(server))
    assert (knobs.asked_budget_nusd, knobs.first_budget_nusd) == (None, 5)
    assert (knobs.lambda_per_usd, knobs.max_turn_nusd, knobs.task_type) == (0.0, 9, "")
    assert read({"x-session-budget-usd": "1", "x-lambda": "4"}, server).first_budget_nusd == 10**9
    assert (read({}).lambda_per_usd, read({}).first_budget_nusd) == (0.0, None)


def test_quality_runs_over_the_lambdas_that_evaluation_looks_at() -> None:
    smallest, largest = min(filter(None, LAMBDA_GRID)), max(LAMBDA_GRID)
    assert lambda_of_quality(10, REFERENCE_USD) == 0
    assert lambda_of_quality(9, REFERENCE_USD) == pytest.approx(smallest / REFERENCE_USD)
    assert lambda_of_quality(0, REFERENCE_USD) == pytest.approx(largest / REFERENCE_USD)
    assert read({"x-quality": "10"}, KnobDefaults(lambda_per_usd=3.0)).lambda_per_usd == 0
    assert read({"x-quality": "9.5"}).lambda_per_usd == pytest.approx(smallest / REFERENCE_USD / 2)


@given(st.floats(0, 10), st.floats(0, 10))
def test_more_quality_never_asks_for_a_higher_price_of_money(quality: float, other: float) -> None:
    low, high = sorted((quality, other))
    assert lambda_of_quality(high, REFERENCE_USD) <= lambda_of_quality(low, REFERENCE_USD)


def test_a_key_that_may_not_set_budgets_is_told_so() -> None:
    with pytest.raises(RequestError, match="x-session-budget-usd: this API key may not set budgets") as caught:
        read({"x-session-budget-usd": "1"}, may_set_budget=False)
    assert (caught.value.status, caught.value.code) == (403, "budget_not_allowed")
    assert read({"x-max-turn-usd": "1"}, may_set_budget=False).max_turn_nusd == 10**9


AMOUNTS = ("0", "-1", "nan", "inf", "1e-10", "1000001", "five", "", "3.14$")
BROKEN = [
    *[({"x-session-budget-usd": value}, "x-session-budget-usd: must be USD > 0") for value in AMOUNTS],
    *[({"x-max-turn-usd": value}, "x-max-turn-usd: must be USD > 0") for value in AMOUNTS],
    *[({"x-lambda": value}, "x-lambda: must be finite and >= 0") for value in ("-1", "nan", "inf", "much", "")],
    *[({"x-quality": value}, "x-quality: must be in [0, 10]") for value in ("-0.1", "10.1", "nan", "best", "")],
    ({"x-quality": "5", "x-lambda": "0"}, "x-lambda, x-quality: two names of one knob"),
    ({"x-task-type": "t" * 129}, "x-task-type: must be printable, at most 128 characters"),
    ({"x-task-type": "a\tb"}, "x-task-type: must be printable, at most 128 characters, got 'a\\tb'"),
]


@pytest.mark.parametrize(("headers", "message"), BROKEN)
def test_a_broken_header_is_named(headers: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(headers)
    assert str(caught.value).startswith(message)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


@pytest.mark.parametrize("value", [True, None, [], {}, "x", 10**400])
def test_an_amount_in_a_body_must_be_a_number(value: object) -> None:
    with pytest.raises(RequestError, match="budget_usd: must be USD > 0"):
        budget_to_nusd("budget_usd", value)
    assert budget_to_nusd("budget_usd", 0.5) == 500_000_000
