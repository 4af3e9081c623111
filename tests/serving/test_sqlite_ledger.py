import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, LedgerError
from seqroute_ray.core.ledger import Account, Ledger
from seqroute_ray.serving.sqlite_ledger import SqliteLedger

MEMORY = Path(":memory:")


def ledger_with(budget_nusd: int) -> SqliteLedger:
    ledger = SqliteLedger(MEMORY)
    ledger.open("s", budget_nusd)
    return ledger


def test_it_is_a_ledger() -> None:
    ledger: Ledger = SqliteLedger(MEMORY)
    assert ledger.open("s", 100) == Account("s", 100, 0, 0, 0, {})


def test_an_existing_account_keeps_its_budget() -> None:
    assert ledger_with(100).open("s", 7).budget_nusd == 100


@pytest.mark.parametrize("budget_nusd", [0, -1, 10**19])
def test_a_budget_out_of_range_is_refused(budget_nusd: int) -> None:
    with pytest.raises(ConfigError, match="a budget must be"):
        SqliteLedger(MEMORY).open("s", budget_nusd)


def test_settling_books_the_cost_and_gives_the_rest_back() -> None:
    ledger = ledger_with(100)
    reservation_id = ledger.reserve("s", 60)
    assert ledger.account("s") == Account("s", 100, 0, 60, 0, {})
    assert ledger.settle(reservation_id, 25, {"num_turns": 1}) == Account("s", 100, 25, 0, 0, {"num_turns": 1})


def test_a_bill_above_the_reservation_is_booked_in_full_as_overshoot() -> None:
    ledger = ledger_with(100)
    account = ledger.settle(ledger.reserve("s", 60), 130, {})
    assert (account.spent_nusd, account.overshoot_nusd, account.remaining_nusd) == (130, 70, 0)
    assert ledger.reserve("s", 0)  # a free model still answers
    with pytest.raises(BudgetExhaustedError, match=r"spent \$0.000000130"):
        ledger.reserve("s", 1)


def test_a_reservation_ends_once() -> None:
    ledger = ledger_with(100)
    settled, released = ledger.reserve("s", 10), ledger.reserve("s", 10)
    ledger.settle(settled, 4, {})
    ledger.release(released)
    before = ledger.account("s")
    for reservation_id in (settled, released, "unknown"):
        with pytest.raises(LedgerError):
            ledger.settle(reservation_id, 4, {})
        with pytest.raises(LedgerError):
            ledger.release(reservation_id)
    assert ledger.account("s") == before


def test_an_unknown_session_has_no_money() -> None:
    with pytest.raises(LedgerError, match="unknown"):
        SqliteLedger(MEMORY).reserve("s", 1)


def test_a_raised_budget_resumes_an_exhausted_session() -> None:
    ledger = ledger_with(10)
    ledger.settle(ledger.reserve("s", 10), 10, {})
    assert ledger.raise_budget("s", 15).remaining_nusd == 5
    with pytest.raises(ConfigError, match="only be raised"):
        ledger.raise_budget("s", 14)


def test_an_open_reservation_survives_a_restart(tmp_path: Path) -> None:
    first = SqliteLedger(tmp_path / "ledger.sqlite")
    first.open("s", 100)
    reservation_id = first.reserve("s", 60)
    second = SqliteLedger(tmp_path / "ledger.sqlite")  # the first one was never closed: its process was killed
    with pytest.raises(BudgetExhaustedError):
        second.reserve("s", 41)
    assert second.settle(reservation_id, 50, {}).spent_nusd == 50


def test_a_path_that_cannot_hold_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be one" * 100)
    for path in (tmp_path, tmp_path / "text", tmp_path / "text" / "ledger.sqlite"):
        with pytest.raises(ConfigError, match="not a usable SQLite file"):
            SqliteLedger(path)


operations = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "release"]), st.integers(0, 60), st.integers(0, 9)), max_size=40
)


@settings(max_examples=100, deadline=None)
@given(operations, st.integers(1, 100))
def test_spent_and_reserved_never_exceed_the_budget_but_by_overshoot(
    steps: list[tuple[str, int, int]], budget_nusd: int
) -> None:
    ledger, running, expected_spent_nusd = ledger_with(budget_nusd), dict[str, int](), 0
    for operation, amount_nusd, pick in steps:
        if operation == "reserve":
            try:
                running[ledger.reserve("s", amount_nusd)] = amount_nusd
            except BudgetExhaustedError:
                assert amount_nusd > ledger.account("s").remaining_nusd
        elif running:
            reservation_id = list(running)[pick % len(running)]
            del running[reservation_id]
            if operation == "settle":
                ledger.settle(reservation_id, amount_nusd, {})
                expected_spent_nusd += amount_nusd
            else:
                ledger.release(reservation_id)
        account = ledger.account("s")
        assert account.spent_nusd == expected_spent_nusd
        assert account.reserved_nusd == sum(running.values())
        assert account.spent_nusd - account.overshoot_nusd + account.reserved_nusd <= budget_nusd


def grants_of_50_threads(path: Path) -> int:
    """How many of 50 threads of this process were granted 7 nano-dollars."""
    ledger = SqliteLedger(path)
    ledger.open("s", 20 * 7 + 6)

    def granted(_: int) -> bool:
        try:
            return bool(ledger.reserve("s", 7))
        except BudgetExhaustedError:
            return False

    with ThreadPoolExecutor(50) as threads:
        return sum(threads.map(granted, range(50)))


def test_of_200_parallel_reservations_on_room_for_20_exactly_20_are_granted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert sum(processes.map(grants_of_50_threads, [path] * 4)) == 20
    assert SqliteLedger(path).account("s").reserved_nusd == 20 * 7
