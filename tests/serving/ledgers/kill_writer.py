"""Reserves and settles for ever, and prints what was acknowledged: PLACE. To be killed in the middle of it."""

import asyncio
import itertools
import os
import sys

from tests.serving.ledgers.support import LEASE_S, opened

NUM_TASKS = 8


def acknowledge(what: str, attempt_id: str) -> None:
    os.write(1, f"{what} {attempt_id}\n".encode())  # at once, whole: a buffer would die with the process


async def write(place: str) -> None:
    async with opened(place) as ledger:

        async def task(number: int) -> None:
            for turn in itertools.count():
                attempt_id = f"{number}-{turn}"
                await ledger.reserve("s", attempt_id, "m", 10, LEASE_S)
                acknowledge("reserved", attempt_id)
                await ledger.settle("s", attempt_id, 7)
                acknowledge("settled", attempt_id)

        await asyncio.gather(*map(task, range(NUM_TASKS)))


asyncio.run(write(sys.argv[1]))
