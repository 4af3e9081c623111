"""Audit, reconciliation and export: on ledgers of both stores, and as commands."""

import asyncio
import json
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqroute_ray.cli import COMMANDS, run
from seqroute_ray.core.errors import ConfigError, DataError, LedgerError
from seqroute_ray.core.ledger import Feedback, Ledger
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.sample import DEFAULT_POOL
from seqroute_ray.serving.decision_log import export_decisions
from seqroute_ray.serving.ledgers.audit import audit
from seqroute_ray.serving.ledgers.bills import read_bill
from seqroute_ray.serving.ledgers.commands import Audit, Export, Reconcile, Show
from seqroute_ray.serving.ledgers.reconcile import reconcile
from tests.serving.ledgers.support import FAR_S, LEASE_S, opened, session_of, turn_of

MODEL = DEFAULT_POOL[0]


async def settle_turn(ledger: Ledger, session_id: str, number: int, cost_nusd: int = 1000) -> None:
    await ledger.open(session_id, 10**9)
    name = f"{session_id}-{number}"
    await ledger.reserve(session_id, name, MODEL, 2000, LEASE_S)
    turn = turn_of(f"d-{name}", cost_nusd, model=MODEL, propensity=0.5)
    await ledger.settle(session_id, name, cost_nusd, turn=turn)


async def test_an_audit_adds_up_what_there_is(place: str) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.open("t", 50)
        await ledger.reserve("s", "a", "m", 100, LEASE_S)
        await ledger.settle("s", "a", 130)
        await ledger.reserve("t", "b", "m", 20, -1.0)
        await ledger.reserve("t", "c", "m", 10, LEASE_S)
        report = await audit(ledger)
        assert (report.num_sessions, report.num_attempts, report.num_entries) == (2, 3, 6)
        assert (report.num_open_attempts, report.num_overdue_attempts) == (2, 1)
        assert (report.spent_usd, report.reserved_usd, report.overshoot_usd) == (130 / 1e9, 30 / 1e9, 30 / 1e9)
        assert (report.num_sessions_over_budget, report.num_wrong_sessions, report.problems) == (1, 0, ())


def test_an_audit_finds_a_counter_that_was_changed_behind_the_ledger(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    with pytest.raises(ConfigError, match="no such file"):
        Audit(ledger=place).run()
    write_and_spoil(place)
    with pytest.raises(LedgerError, match=r"'s' counter=spent_nusd account=1 journal=0 \(and 1 more\)"):
        Audit(ledger=place).run()


async def test_an_audit_finds_a_turn_that_no_session_counts(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "a", "m", 30, LEASE_S)
        await ledger.settle("s", "a", 20, turn=turn_of("d"))
    with sqlite3.connect(place) as db:
        db.execute("UPDATE accounts SET num_turns = 0")
    db.close()
    async with opened(place) as ledger:
        assert (await audit(ledger)).problems == ("session='s' counter=num_turns account=0 attempts=1",)


def write_and_spoil(place: str) -> None:
    async def write() -> None:
        async with session_of(place, 100):
            pass

    asyncio.run(write())
    with sqlite3.connect(place) as db:
        db.execute("UPDATE accounts SET spent_nusd = 1")
    db.close()


def test_an_account_is_shown_with_what_holds_its_money(place: str) -> None:
    async def write() -> None:
        async with session_of(place, 100) as ledger:
            await ledger.reserve("s", "ended", "m", 30, LEASE_S)
            await ledger.settle("s", "ended", 20)
            await ledger.reserve("s", "running", "m", 50, LEASE_S)

    asyncio.run(write())
    shown = Show(ledger=place, session="s").run()
    (attempt,) = shown["open_attempts"]
    assert (shown["budget_usd"], shown["spent_usd"], shown["reserved_usd"]) == (1e-7, 2e-8, 5e-8)
    assert (attempt["attempt_id"], attempt["model"], attempt["reserved_usd"]) == ("running", "m", 5e-8)
    assert 0 < attempt["lease_left_s"] <= LEASE_S
    assert shown["problems"] == []
    with pytest.raises(LedgerError, match="session 'nobody' is unknown"):
        Show(ledger=place, session="nobody").run()


async def test_a_bill_is_compared_and_booked_only_when_asked(place: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with session_of(place, 10**6) as ledger:
        for attempt_id in ("equal", "more", "less", "open", "released", "expired"):
            await ledger.reserve("s", attempt_id, "m", 1000, -1.0 if attempt_id == "expired" else LEASE_S)
        await ledger.expire(FAR_S / 2, max_attempts=1)
        for attempt_id in ("equal", "more", "less"):
            await ledger.settle("s", attempt_id, 500)
        await ledger.release("s", "released")
        bill = {"equal": 500, "more": 1500, "less": 400, "expired": 0, "open": 5, "released": 6, "unknown": 7}
        for apply in (False, True):
            report = await reconcile(ledger, bill, apply)
            assert (report.num_equal, report.num_different, report.num_corrected) == (1, 3, 3 * apply)
            assert (report.num_open, report.num_released, report.num_unknown) == (1, 1, 1)
            assert (report.billed_usd, report.booked_usd) == (2418 / 1e9, 2500 / 1e9)
        assert "event=bill_different attempt=more bill_usd=0.000001500 booked_usd=0.000000500" in caplog.text
        assert "event=bill_unknown attempt=unknown bill_usd=0.000000007 booked_usd=none" in caplog.text
        account = await ledger.account("s")
        assert (account.spent_nusd, account.reserved_nusd, account.overshoot_nusd) == (2400, 1000, 500)
        assert (await reconcile(ledger, bill, True)).num_equal == 4
        assert (await audit(ledger)).num_wrong_sessions == 0


async def test_a_correction_reaches_the_month_of_the_api_key_too(place: str) -> None:
    async with session_of(place, 10**6) as ledger:
        await ledger.open("month/2026-11/team", 10**6)
        for account, attempt_id in (("month/2026-11/team", "a.month"), ("s", "a")):
            await ledger.reserve(account, attempt_id, "m", 1000, LEASE_S)
            await ledger.settle(account, attempt_id, 500)
        assert (await reconcile(ledger, {"a": 800}, True)).num_corrected == 1
        assert [(await ledger.account(name)).spent_nusd for name in ("s", "month/2026-11/team")] == [800, 800]
        assert (await audit(ledger)).num_wrong_sessions == 0


def test_bills_of_all_formats_are_read_exactly(tmp_path: Path) -> None:
    rows = [("a", "0.1"), ("b", "0.000000001"), ("a", "0.2")]
    (tmp_path / "bill.csv").write_text("cost_usd,attempt_id\n" + "".join(f"{cost},{name}\n" for name, cost in rows))
    lines = (f'{{"attempt_id": "{name}", "cost_usd": {cost}, "more": 1}}\n' for name, cost in rows)
    (tmp_path / "bill.jsonl").write_text("".join(lines))
    names, costs = zip(*rows, strict=True)
    table = pa.table({"attempt_id": names, "cost_usd": [float(cost) for cost in costs]})
    pq.write_table(table, tmp_path / "bill.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert read_bill(tmp_path / f"bill.{suffix}") == {"a": 300_000_000, "b": 1}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bill.csv", "attempt_id,usd\na,1\n", "has no column cost_usd; it has attempt_id, usd"),
        ("bill.csv", "attempt_id,cost_usd\na,1\nb,-1\n", r"bill.csv:3: cost_usd must be a number in \[0, 1000000\]"),
        ("bill.csv", "attempt_id,cost_usd\na,much\n", "got 'much'"),
        ("bill.csv", "attempt_id,cost_usd\n,1\n", "attempt_id must be a text"),
        ("bill.jsonl", '{"attempt_id": "a", "cost_usd": NaN}\n', "bill.jsonl:1: cost_usd must be"),
        ("bill.jsonl", '{"attempt_id": "a"}\n', "got None"),
        ("bill.jsonl", "[1]\n", "must be an object"),
        ("bill.jsonl", "a,1\n", "not JSON"),
        ("bill.parquet", "text", "cannot be read"),
        ("bill.txt", "", "must be one of .csv, .jsonl, .parquet, got .txt"),
    ],
)
def test_a_bill_that_cannot_be_used_is_refused_by_its_row(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_bill(tmp_path / name)


async def test_an_export_is_logs_that_an_import_takes(place: str, tmp_path: Path) -> None:
    async with opened(place) as ledger:
        for number in range(3):
            await settle_turn(ledger, "s", number)
        await settle_turn(ledger, "t", 0, cost_nusd=1500)
        for target, judge, score, at_s in (("d-s-0", "a", 0.9, 9.0), ("d-s-0", "b", 0.1, 8.0), ("t", "a", 0.5, 1.0)):
            await ledger.add_feedback(Feedback(target=target, judge=judge, score=score, at_s=at_s))
        report = await export_decisions(ledger, tmp_path / "log.parquet")
    assert (report.num_sessions, report.num_turns, report.num_judged_turns, report.num_cut_sessions) == (2, 4, 2, 0)
    rows = {(row["session_id"], row["turn"]): row for row in pq.read_table(tmp_path / "log.parquet").to_pylist()}
    assert {place_: row["quality"] for place_, row in rows.items()} == {
        ("s", 0): 0.9,
        ("s", 1): None,
        ("s", 2): None,
        ("t", 0): 0.5,
    }
    assert rows["t", 0] == {
        "session_id": "t",
        "turn": 0,
        "embedding": [0.0, 1.0, 2.0, 3.0],
        "model": MODEL,
        "quality": 0.5,
        "cost_usd": 1500 / 1e9,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "propensity": 0.5,
        "source": None,
    }
    config = ImportConfig(logs=(str(tmp_path / "log.parquet"),), out=str(tmp_path / "sessions.parquet"), runner="local")
    imported = import_logs(config)
    assert (imported.num_sessions, imported.num_turns, imported.num_bad_rows) == (2, 4, 0)


async def test_a_watermark_lets_the_next_export_begin_where_the_last_one_ended(place: str, tmp_path: Path) -> None:
    out = tmp_path / "log.parquet"

    async def exported(ledger: Ledger, since: int) -> tuple[set[str], int]:
        report = await export_decisions(ledger, out, since)
        return set(pq.read_table(out)["session_id"].to_pylist()), report.watermark

    async with opened(place) as ledger:
        for session_id in ("s", "t", "u"):
            await settle_turn(ledger, session_id, 0)
        found, watermark = await exported(ledger, 0)
        assert found == {"s", "t", "u"}
        assert await exported(ledger, watermark) == (set(), watermark)
        await settle_turn(ledger, "s", 1)
        await ledger.add_feedback(Feedback(target="d-u-0", judge="a", score=1.0, at_s=1.0))
        found, later = await exported(ledger, watermark)
        assert (found, later > watermark) == ({"s", "u"}, True)
        assert pq.read_table(out).num_rows == 3  # whole sessions


async def test_a_session_that_changes_while_it_is_exported_is_exported_once_now_and_again_next_time(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqroute_ray.serving.decision_log._PAGE", 1)
    async with opened(place) as ledger:
        for session_id in ("s", "t"):
            await settle_turn(ledger, session_id, 0)
        read = ledger.session_log

        async def read_and_change(session_id: str) -> object:
            log = await read(session_id)
            if session_id == "s":
                await settle_turn(ledger, "s", 1)
            return log

        monkeypatch.setattr(type(ledger), "session_log", lambda _, session_id: read_and_change(session_id))
        report = await export_decisions(ledger, tmp_path / "log.parquet")
        assert pq.read_table(tmp_path / "log.parquet")["session_id"].to_pylist() == ["s", "t"]
        monkeypatch.undo()
        await export_decisions(ledger, tmp_path / "log.parquet", report.watermark)
        assert pq.read_table(tmp_path / "log.parquet")["turn"].to_pylist() == [0, 1]


async def test_a_session_whose_first_turns_are_not_in_the_log_is_left_out(place: str, tmp_path: Path) -> None:
    async with opened(place) as ledger:
        await settle_turn(ledger, "s", 0)
        log = await ledger.session_log("s")
        late = replace(log.turns[0], record=log.turns[0].record | {"turn": 4})

        class Cut:
            async def changed(self, after: int, limit: int) -> list[tuple[int, str]]:
                return await ledger.changed(after, limit)

            async def session_log(self, _session_id: str) -> object:
                return replace(log, turns=[late])

        report = await export_decisions(Cut(), tmp_path / "log.parquet")  # type: ignore[arg-type] # all it calls
        assert (report.num_sessions, report.num_cut_sessions) == (0, 1)


def test_the_commands_print_what_they_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out, bill = str(tmp_path / "ledger.sqlite"), tmp_path / "log.parquet", tmp_path / "bill.csv"

    async def write() -> None:
        async with opened(place) as ledger:
            await settle_turn(ledger, "s", 0)

    asyncio.run(write())
    bill.write_text("attempt_id,cost_usd\ns-0,0.000002\n")
    for command in (
        Audit(ledger=place),
        Reconcile(ledger=place, bill=bill, apply=True),
        Export(ledger=place, out=out),
    ):
        assert run(lambda: COMMANDS["ledger"](command)) == 0  # noqa: B023 - called here
    audited, reconciled, exported = map(json.loads, capsys.readouterr().out.splitlines())
    assert (audited["num_sessions"], reconciled["num_corrected"], exported["num_turns"]) == (1, 1, 1)
    assert np.isclose(pq.read_table(out)["cost_usd"][0].as_py(), 2e-6)
    for wrong in (Export(ledger=place, out=tmp_path / "absent" / "x"), Audit(ledger="https://x")):
        with pytest.raises(ConfigError):
            wrong.run()
    with pytest.raises(ConfigError, match="since must be >= 0"):
        Export(ledger=place, out=out, since=-1)
