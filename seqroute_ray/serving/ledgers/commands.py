"""`seqroute ledger audit | show | reconcile | export`: on a ledger that exists, also while servers use it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqroute_ray.core.errors import ConfigError, LedgerError
from seqroute_ray.core.ledger import AttemptState, Books, Ledger

# Each command imports what it needs when it runs: `seqroute --help` loads no store.


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Compare every session's counters with its journal and its attempts; exit code 1 when they differ."""

    ledger: str  # path of the SQLite file, or redis://HOST:PORT/DB
    redis_password_env: str | None = None  # environment variable that holds Redis' password

    def run(self) -> dict[str, Any]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        from seqroute_ray.serving.ledgers.audit import audit

        async with existing_ledger(self.ledger, self.redis_password_env) as ledger:
            report = await audit(ledger)
        if report.problems:
            more = f" (and {len(report.problems) - 1} more)" if report.problems[1:] else ""
            raise LedgerError(
                f"the books are wrong: {report.problems[0]}{more}; keep a copy of the ledger, close the sessions that "
                "the log names, and compare with the providers' bill (`seqroute ledger reconcile`)"
            )
        return asdict(report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """One account: its money, the attempts that hold some of it, and what an audit finds in its books."""

    ledger: str  # path of the SQLite file, or redis://HOST:PORT/DB
    session: str  # as the ledger names it: KEY:SESSION (local:SESSION without keys), or month/YYYY-MM/KEY
    redis_password_env: str | None = None  # environment variable that holds Redis' password

    def run(self) -> dict[str, Any]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        from seqroute_ray.serving.ledgers.audit import problems_of

        async with existing_ledger(self.ledger, self.redis_password_env) as ledger:
            books = await ledger.books(self.session)
        account = books.account
        return {
            "session": account.session_id,
            **{
                f"{name}_usd": getattr(account, f"{name}_nusd") / 1e9
                for name in ("budget", "spent", "reserved", "remaining", "overshoot")
            },
            "num_turns": account.num_turns,
            "closed": account.closed,
            "open_attempts": _open_attempts(books, time.time()),
            "problems": problems_of(books),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconcile:
    """Compare a provider's bill with the ledger, attempt by attempt; differences are logged."""

    ledger: str  # path of the SQLite file, or redis://HOST:PORT/DB
    bill: Path  # CSV, JSON Lines or Parquet with attempt_id and cost_usd
    apply: bool = False  # book corrections, so that the ledger says what the bill says
    redis_password_env: str | None = None  # environment variable that holds Redis' password

    def run(self) -> dict[str, Any]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        from seqroute_ray.serving.ledgers.bills import read_bill
        from seqroute_ray.serving.ledgers.reconcile import reconcile

        bill_nusd = read_bill(self.bill)
        async with existing_ledger(self.ledger, self.redis_password_env) as ledger:
            return asdict(await reconcile(ledger, bill_nusd, self.apply))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write the decision log as Parquet for `seqroute import`: answered turns, costs, feedback; no text."""

    ledger: str  # path of the SQLite file, or redis://HOST:PORT/DB
    out: Path  # Parquet file
    since: int = 0  # watermark of an earlier export: only sessions that changed after it; 0 is all
    redis_password_env: str | None = None  # environment variable that holds Redis' password

    def __post_init__(self) -> None:
        if self.since < 0:
            raise ConfigError(f"since must be >= 0, the watermark of an earlier export, got {self.since}")

    def run(self) -> dict[str, Any]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        from seqroute_ray.serving.decision_log import export_decisions

        async with existing_ledger(self.ledger, self.redis_password_env) as ledger:
            return asdict(await export_decisions(ledger, self.out, self.since))


LedgerCommand = (
    Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Reconcile, tyro.conf.subcommand("reconcile")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def _open_attempts(books: Books, now_s: float) -> list[dict[str, Any]]:
    """What holds money; a lease of less than 0 s ran out, and a reaper will charge its attempt."""
    return [
        {
            "attempt_id": attempt.attempt_id,
            "model": attempt.model,
            "reserved_usd": attempt.amount_nusd / 1e9,
            "lease_left_s": round(attempt.lease_until_s - now_s, 1),
        }
        for attempt in books.attempts
        if attempt.state is AttemptState.RESERVED
    ]


@asynccontextmanager
async def existing_ledger(place: str, redis_password_env: str | None) -> AsyncIterator[Ledger]:
    """The ledger while the block runs. Raises ConfigError when there is none: a new one would look right."""
    from seqroute_ray.serving.ledgers.factory import is_redis, open_ledger

    if not is_redis(place) and "://" not in place and not Path(place).is_file():
        raise ConfigError(f"ledger {place}: no such file; name the server's ledger")
    ledger = await open_ledger(place, redis_password_env)
    try:
        yield ledger
    finally:
        await ledger.close()
