"""Many tasks of many processes at one session: what fits is granted, and not one nano-dollar more."""

import asyncio

from seqroute_ray.core.errors import LedgerError
from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.ledgers.audit import problems_of
from tests.serving.ledgers.contenders import AMOUNT_NUSD, BUDGET_NUSD, NUM_FITTING, num_grants
from tests.serving.ledgers.support import FAR_S, LEASE_S, opened, session_of, turn_of


async def test_of_128_parallel_reservations_on_room_for_50_exactly_50_are_granted(place: str) -> None:
    async with session_of(place, BUDGET_NUSD) as ledger:
        granted = await asyncio.to_thread(num_grants, place, broken=False)
        account = await ledger.account("s")
    assert (granted, account.reserved_nusd) == (NUM_FITTING, NUM_FITTING * AMOUNT_NUSD)


async def test_a_ledger_that_checks_and_then_adds_overspends_in_the_same_contest(place: str) -> None:
    async with session_of(place, BUDGET_NUSD):
        granted = await asyncio.to_thread(num_grants, place, broken=True)
    assert granted > NUM_FITTING


async def test_each_orphan_is_charged_by_one_of_many_reapers(place: str) -> None:
    async with session_of(place, 1000) as ledger, opened(place) as second:
        for number in range(60):
            await ledger.reserve("s", f"a{number}", "m", 10, 0.0)
        reapers = (reaper.expire(FAR_S) for reaper in (ledger, second) * 6)
        found = [attempt.attempt_id for expired in await asyncio.gather(*reapers) for attempt in expired]
        assert sorted(found) == sorted(f"a{number}" for number in range(60))
        assert (await ledger.account("s")).spent_nusd == 600


async def test_of_two_who_settle_one_attempt_one_is_booked(place: str) -> None:
    async with session_of(place, 100) as ledger, opened(place) as second:
        await ledger.reserve("s", "a", "m", 50, LEASE_S)
        calls = (store.settle("s", "a", cost_nusd) for store, cost_nusd in ((ledger, 20), (second, 30)))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, LedgerError) for result in results) == 1
        books = await ledger.books("s")
        assert books.account.spent_nusd in (20, 30)
        assert problems_of(books) == []


async def test_parallel_turns_are_numbered_without_gaps(place: str) -> None:
    async with session_of(place, 10_000) as ledger, opened(place) as second:
        stores = (ledger, second) * 16

        async def turn(number: int) -> None:
            await stores[number].reserve("s", f"a{number}", "m", 10, LEASE_S)
            await stores[number].settle("s", f"a{number}", 5, turn=turn_of(f"d{number}"))

        await asyncio.gather(*map(turn, range(len(stores))))
        log = await ledger.session_log("s")
        assert [one.record["turn"] for one in log.turns] == list(range(len(stores)))
        assert (await ledger.account("s")).num_turns == len(stores)


async def test_a_call_that_cannot_be_written_fails_alone(place: str) -> None:
    async with session_of(place, 100) as ledger:
        texts = ("a", "\ud800", "b")  # half a character
        calls = (ledger.reserve("s", text, "m", 10, LEASE_S) for text in texts)
        first, failed, last = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(failed, UnicodeEncodeError)
        assert isinstance(first, Account)
        assert isinstance(last, Account)
        assert (await ledger.account("s")).reserved_nusd == 20


async def test_a_task_that_is_cancelled_at_any_moment_of_a_call_ends(place: str) -> None:
    async with session_of(place, 100) as ledger:

        async def ask_for_ever() -> None:
            while True:
                await ledger.account("s")
                await ledger.raise_budget("s", 100)

        for num_steps in range(300):
            task = asyncio.create_task(ask_for_ever())
            for _ in range(num_steps % 60):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=10)
            assert task.cancelled()


async def test_a_call_that_was_cancelled_is_booked_or_not_but_never_in_part(place: str) -> None:
    async with session_of(place, 1000) as ledger:
        tasks = [asyncio.create_task(ledger.reserve("s", f"a{number}", "m", 10, LEASE_S)) for number in range(40)]
        for number, task in enumerate(tasks):
            await asyncio.sleep(0)
            if number % 2:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ledger.reserve("s", "last", "m", 10, LEASE_S)
        assert problems_of(await ledger.books("s")) == []
