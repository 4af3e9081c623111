import asyncio
import multiprocessing
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, LedgerUnavailable
from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.ledgers import group_commit
from seqroute_ray.serving.ledgers.audit import problems_of
from seqroute_ray.serving.ledgers.sqlite import SqliteLedger
from tests.serving.ledgers.old_sqlite import write_old_ledger
from tests.serving.ledgers.support import LEASE_S, money, opened, session_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def test_an_old_ledger_is_brought_up_to_date(path: Path) -> None:
    write_old_ledger(path)
    async with opened(str(path)) as ledger:
        account = await ledger.account("s")
        assert (money(account), account.num_turns, account.summary_sum) == ((100, 30, 40, 10), 1, (0.5, 0.25))
        assert money(await ledger.account("new")) == (7, 0, 0, 0)
        for session_id in ("s", "new"):
            assert problems_of(await ledger.books(session_id)) == []
        (charged,) = await ledger.expire(time.time())  # its lease ran out with the release that gave none
        assert (charged.attempt_id, charged.cost_nusd) == ("c", 40)
        assert money(await ledger.settle("s", "c", 35)) == (100, 65, 0, 10)
    async with opened(str(path)) as ledger:  # once more: nothing is left to do
        assert money(await ledger.account("s")) == (100, 65, 0, 10)


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with session_of(str(path), 100):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(ConfigError, match="version 2, this release knows up to 1; use the release that wrote it"):
        SqliteLedger(path)


async def test_the_journal_only_grows(path: Path) -> None:
    async with session_of(str(path), 100):
        with sqlite3.connect(path) as db:
            for statement in ("UPDATE entries SET spent_nusd = 0", "DELETE FROM entries"):
                with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                    db.execute(statement)
        db.close()


def test_a_path_that_cannot_hold_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be one" * 100)
    for path in (tmp_path, tmp_path / "text", tmp_path / "text" / "ledger.sqlite"):
        with pytest.raises(ConfigError, match="not a usable SQLite file"):
            SqliteLedger(path)
    with pytest.raises(ConfigError, match="needs a file"):
        SqliteLedger(Path(":memory:"))


def open_and_close(path: Path) -> int:
    async def work() -> int:
        async with session_of(str(path), 100) as ledger:
            return (await ledger.account("s")).budget_nusd

    return asyncio.run(work())


def test_processes_may_make_or_migrate_one_file_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(int, range(4)))  # all are up
        for number in range(4):
            path = tmp_path / str(number) / "ledger.sqlite"
            if number % 2:
                path.parent.mkdir()
                write_old_ledger(path)
            assert list(processes.map(open_and_close, [path] * 4)) == [100] * 4


async def test_an_error_undoes_its_own_operation_alone(path: Path) -> None:
    async with session_of(str(path), 100) as ledger:
        calls = [ledger.reserve("s", f"a{amount}", "m", amount, LEASE_S) for amount in (60, 50, 40)]
        sixty, fifty, forty = await asyncio.gather(*calls, return_exceptions=True)  # one transaction
        assert isinstance(fifty, BudgetExhaustedError)
        assert isinstance(sixty, Account)
        assert isinstance(forty, Account)
        assert money(await ledger.account("s")) == (100, 0, 100, 0)
        assert problems_of(await ledger.books("s")) == []


async def test_a_transaction_that_another_process_never_ends_makes_the_ledger_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "BUSY_TIMEOUT_S", 0.05)
    async with session_of(str(path), 100) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            await ledger.reserve("s", "a", "m", 10, LEASE_S)
        assert money(await ledger.account("s")) == (100, 0, 0, 0)  # reading waits for nobody
        other.execute("COMMIT")
        other.close()
        assert money(await ledger.reserve("s", "a", "m", 10, LEASE_S)) == (100, 0, 10, 0)


async def test_a_full_disk_undoes_all_that_shared_the_transaction(path: Path) -> None:
    async with session_of(str(path), 10**6) as ledger:
        assert isinstance(ledger, SqliteLedger)
        db = ledger._writer._db
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        calls = [ledger.reserve("s", f"{number:0>500}", "m", 1, LEASE_S) for number in range(100)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, LedgerUnavailable) for result in results)
        assert money(await ledger.account("s")) == (10**6, 0, 0, 0)
        db.execute("PRAGMA max_page_count = 1000000")
        assert money(await ledger.reserve("s", "a", "m", 1, LEASE_S)) == (10**6, 0, 1, 0)


async def test_what_was_accepted_is_done_before_closing_and_nothing_after(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.open("s", 100)
    waiting = asyncio.create_task(ledger.reserve("s", "a", "m", 10, LEASE_S))
    await asyncio.sleep(0)
    await ledger.close()
    assert (await waiting).reserved_nusd == 10
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.reserve("s", "b", "m", 10, LEASE_S)


@pytest.mark.parametrize("quick_s", [0.0, float("inf")])  # every commit in the thread; on the loop
async def test_the_write_ahead_log_does_not_grow_with_what_is_written(
    path: Path, quick_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_QUICK_COMMIT_S", quick_s)
    log, sizes = path.with_name(path.name + "-wal"), []
    async with session_of(str(path), 10**6) as ledger:
        for number in range(6 * group_commit._CHECKPOINT_COMMITS):
            await ledger.reserve("s", f"a{number}", "m", 1, LEASE_S)
            sizes.append(log.stat().st_size)
        assert len((await ledger.books("s")).attempts) == len(sizes)
    assert sizes[-1] < 1.5 * sizes[2 * group_commit._CHECKPOINT_COMMITS]


class NoCheckpoints(sqlite3.Connection):
    """On a disk that is full for the file, not for its log."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if "wal_checkpoint" in sql:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *arguments)


async def test_what_is_committed_stands_though_the_log_cannot_be_copied_into_the_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with session_of(str(path), 100):
        pass
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=NoCheckpoints)
    writer = group_commit.GroupCommit(db)
    for number in range(2 * group_commit._CHECKPOINT_COMMITS):
        insert = f"INSERT INTO accounts (session_id, budget_nusd) VALUES ('n{number}', 1)"
        await writer.run(lambda db, insert=insert: db.execute(insert))  # type: ignore[misc]
    await writer.close()
    assert "event=checkpoint_failed" in caplog.text
    async with opened(str(path)) as ledger:
        assert len(await ledger.sessions("n", 1000)) == 2 * group_commit._CHECKPOINT_COMMITS + 1  # and "s"
