"""Processes that fight for the last money of one session, each with many tasks."""

import asyncio
import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

from seqroute_ray.core.errors import BudgetExhaustedError
from seqroute_ray.core.ledger import Account, Ledger
from tests.serving.ledgers.support import LEASE_S, opened

NUM_PROCESSES, NUM_TASKS, NUM_TRIES = 4, 16, 2
AMOUNT_NUSD, NUM_FITTING = 7, 50
BUDGET_NUSD = NUM_FITTING * AMOUNT_NUSD + AMOUNT_NUSD - 1


class CheckThenAdd:
    """What a ledger must not be: it looks whether the money is there, and takes it in a second step."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def reserve(self, session_id: str, attempt_id: str, model: str, amount_nusd: int, lease_s: float) -> Account:
        num_granted = len(await self._ledger.entries(session_id)) - 1
        account = await self._ledger.account(session_id)
        if (num_granted + 1) * amount_nusd > account.budget_nusd:
            raise BudgetExhaustedError("it looked as if there was too little")
        return await self._ledger.reserve(session_id, attempt_id, model, 0, lease_s)  # 0: the store checks nothing


def num_grants(place: str, broken: bool) -> int:
    """How many reservations of AMOUNT_NUSD the session "s" was granted, over all processes."""
    spawn = multiprocessing.get_context("spawn")
    start, counts = spawn.Barrier(NUM_PROCESSES), spawn.Queue()
    processes = [
        spawn.Process(target=_contend, args=(place, broken, number, start, counts)) for number in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    granted: int = sum(counts.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return granted


def _contend(place: str, broken: bool, number: int, start: Barrier, counts: "Queue[int]") -> None:
    counts.put(asyncio.run(_count_grants(place, broken, number, start)))


async def _count_grants(place: str, broken: bool, number: int, start: Barrier) -> int:
    async with opened(place) as store:
        ledger = CheckThenAdd(store) if broken else store

        async def contend(task: int) -> int:
            granted = 0
            for attempt in range(NUM_TRIES):
                try:
                    await ledger.reserve("s", f"{number}-{task}-{attempt}", "m", AMOUNT_NUSD, LEASE_S)
                except BudgetExhaustedError:
                    continue
                granted += 1
            return granted

        await store.account("s")
        await asyncio.to_thread(start.wait, 60)
        return sum(await asyncio.gather(*map(contend, range(NUM_TASKS))))
