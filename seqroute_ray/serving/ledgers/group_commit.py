"""Group commit: one thread runs whatever operations wait, in one SQLite transaction with one sync of the disk.

An operation is a function of the connection. It sees those before it, and its error undoes it alone; the callers hear
of their results together, after the commit. The thread keeps SQLite's waiting (locks, the disk) off the event loop.
"""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from seqroute_ray.core.errors import LedgerUnavailable

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]


class _Asked(NamedTuple):
    operation: Operation[Any]
    future: asyncio.Future[Any]


class _Done(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class GroupCommit:
    """A connection and the thread that has it to itself. `begin` tells whether the operations write."""

    def __init__(self, db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> None:
        self._db, self._begin = db, begin
        self._queue = SimpleQueue[_Asked | None]()  # None: no more will come
        self._closed = False
        self._thread = Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    async def run(self, operation: Operation[T]) -> T:
        """The operation's result, once it is on the disk; it is run also if the caller is cancelled meanwhile.

        Raises what the operation raises; LedgerUnavailable when its transaction failed.
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Asked(operation, future))
        return await future

    async def close(self) -> None:
        """Run what was accepted, then close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while batch := self._next_batch():
            _resolve(self._commit(batch))
        self._db.close()

    def _next_batch(self) -> list[_Asked]:
        """All that wait, at least one; empty in the end."""
        batch, asked = [], self._queue.get()
        try:
            while asked is not None:
                batch.append(asked)
                asked = self._queue.get_nowait()
        except Empty:
            return batch
        if batch:
            self._queue.put(None)  # for the next time
        return batch

    def _commit(self, batch: list[_Asked]) -> list[_Done]:
        try:
            self._db.execute(self._begin)
            done = [self._run(asked) for asked in batch]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            unavailable = LedgerUnavailable(f"the ledger's file cannot be used ({error}); nothing was changed")
            return [_Done(asked.future, None, unavailable) for asked in batch]
        return done

    def _run(self, asked: _Asked) -> _Done:
        """One operation. A failure of SQLite is raised: it may have ended the transaction of all."""
        self._db.execute("SAVEPOINT one")
        try:
            done = _Done(asked.future, asked.operation(self._db), None)
        except Exception as error:  # whatever it is, it is this caller's: the thread goes on for the others
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise
            done = self._undone(asked, error)
        self._db.execute("RELEASE one")
        return done

    def _undone(self, asked: _Asked, error: Exception) -> _Done:
        self._db.execute("ROLLBACK TO one")
        return _Done(asked.future, None, error)


def _resolve(done: list[_Done]) -> None:
    """Tell each event loop its results, in one call."""
    by_loop = defaultdict[asyncio.AbstractEventLoop, list[_Done]](list)
    for one in done:
        by_loop[one.future.get_loop()].append(one)
    for loop, results in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_results, results)
        except RuntimeError:  # the loop was closed, and its callers with it
            continue


def _set_results(results: list[_Done]) -> None:
    for future, value, error in results:
        if future.done():  # cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
