"""Group commit: operations that come while the disk is busy share the next transaction, and its one sync of the disk.

An operation is a function of the connection. It sees those before it, and its error undoes it alone; the callers hear
of their results together, after the commit. Statements inside a transaction touch memory only and run on the event
loop: in a thread, each of them would wait for the interpreter lock. So does the commit while the disk syncs faster than
the way to a thread and back takes. What waits longer, for a slow disk or another process's transaction, has a thread.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from seqroute_ray.core.errors import LedgerUnavailable

BUSY_TIMEOUT_S = 10.0  # how long a transaction waits for another process's; one takes about a millisecond
_BUSY_POLL_S = 0.0002
_QUICK_COMMIT_S = 0.0005  # after a commit that took no longer, the next one is made on the loop
_CHECKPOINT_COMMITS = 100  # after so many the write-ahead log is copied into the file

logger = logging.getLogger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]


class _Asked(NamedTuple):
    operation: Operation[Any]
    future: asyncio.Future[Any]


class _Done(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class GroupCommit:
    """The only writer on a connection, which has a busy timeout of 0; used from one event loop."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._waiting: list[_Asked] = []
        self._committing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._closed = False
        self._commit_s = float("inf")  # of the last commit
        self._num_commits = 0
        db.execute("PRAGMA wal_autocheckpoint = 0")  # `_commit_to_disk` does, never on the loop

    async def run(self, operation: Operation[T]) -> T:
        """The operation's result, once it is on the disk; it is run also if the caller is cancelled meanwhile.

        Raises what the operation raises; LedgerUnavailable when its transaction failed.
        """
        if self._closed:
            raise LedgerUnavailable("the ledger is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Asked(operation, future))
        if self._committing is None or self._committing.done():
            self._committing = loop.create_task(self._commit_all())
        return await future

    async def close(self) -> None:
        """Run what was accepted, then close the connection."""
        self._closed = True
        if self._committing is not None:
            await asyncio.wait([self._committing])
        self._thread.shutdown()
        self._db.close()

    async def _commit_all(self) -> None:
        """Transaction after transaction, each of all that wait, until none does."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            for future, value, error in await self._commit(batch):
                if future.done():  # cancelled
                    continue
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

    async def _commit(self, batch: list[_Asked]) -> list[_Done]:
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            if not _begins(self._db):
                await in_thread(self._thread, _begin, self._db)
            done = [self._run(asked) for asked in batch] if len(batch) > 1 else [self._tried(batch[0], "ROLLBACK")]
            if not self._db.in_transaction:  # its only operation failed
                return done
            self._num_commits += 1
            is_quick = self._commit_s < _QUICK_COMMIT_S
            if is_quick and self._num_commits % _CHECKPOINT_COMMITS:
                self._commit_to_disk()
            else:
                await in_thread(self._thread, self._commit_to_disk)
        except Exception as error:  # whatever it is, nobody may wait for ever
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            unavailable = LedgerUnavailable(f"the ledger's file cannot be used ({error})")
            return [_Done(asked.future, None, unavailable) for asked in batch]
        return done

    def _commit_to_disk(self) -> None:
        began_s = time.perf_counter()
        self._db.execute("COMMIT")
        self._commit_s = time.perf_counter() - began_s
        if not self._num_commits % _CHECKPOINT_COMMITS:
            try:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:  # what was committed is safe in the log; the next one tries again
                logger.warning("event=checkpoint_failed error='%s'", error)

    def _run(self, asked: _Asked) -> _Done:
        """One operation of several."""
        self._db.execute("SAVEPOINT one")
        done = self._tried(asked, "ROLLBACK TO one")
        self._db.execute("RELEASE one")
        return done

    def _tried(self, asked: _Asked, undo: str) -> _Done:
        """undo: the statement that takes back what an operation did before its error."""
        try:
            return _Done(asked.future, asked.operation(self._db), None)
        except Exception as error:  # whatever it is, it is this caller's: the others' operations go on
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise  # a failure of SQLite: it may have ended the transaction of all
            self._db.execute(undo)
            return _Done(asked.future, None, error)


def _begins(db: sqlite3.Connection) -> bool:
    """Begin a transaction that writes; False when another process has one."""
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _begin(db: sqlite3.Connection) -> None:
    """Begin as soon as other processes let it. SQLite's own waiting sleeps ever longer: too long for a millisecond."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while not _begins(db):
        if time.monotonic() > deadline_s:
            raise sqlite3.OperationalError(f"another process has had it locked for {BUSY_TIMEOUT_S:.0f} s")
        time.sleep(_BUSY_POLL_S)
