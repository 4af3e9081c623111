"""Audit: every session's counters against its journal and against its attempts."""

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from seqroute_ray.core.ledger import AttemptState, Books, Change, Ledger
from seqroute_ray.core.ledger_rules import total

_PAGE = 500  # sessions asked for at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found; the books are right when num_wrong_sessions is 0."""

    num_sessions: int
    num_attempts: int
    num_entries: int
    num_open_attempts: int  # money is reserved for them
    num_overdue_attempts: int  # open, with a lease that ran out: the reaper has not been there yet
    spent_usd: float
    reserved_usd: float
    overshoot_usd: float  # billed above reservations
    num_sessions_over_budget: int  # by overshoot, or by a correction that came after the money was given out again
    num_wrong_sessions: int
    problems: tuple[str, ...]  # of wrong sessions


async def audit(ledger: Ledger) -> AuditReport:
    """Read all sessions, each as of one moment; the ledger may be in use."""
    now_s = time.time()
    all_books = [_Summary.of(books, now_s) async for books in _all_books(ledger)]
    problems = tuple(problem for summary in all_books for problem in summary.problems)
    for problem in problems:
        logger.error("event=ledger_wrong %s", problem)
    return AuditReport(
        num_sessions=len(all_books),
        num_attempts=sum(summary.num_attempts for summary in all_books),
        num_entries=sum(summary.num_entries for summary in all_books),
        num_open_attempts=sum(summary.num_open for summary in all_books),
        num_overdue_attempts=sum(summary.num_overdue for summary in all_books),
        spent_usd=sum(summary.spent_nusd for summary in all_books) / 1e9,
        reserved_usd=sum(summary.reserved_nusd for summary in all_books) / 1e9,
        overshoot_usd=sum(summary.overshoot_nusd for summary in all_books) / 1e9,
        num_sessions_over_budget=sum(summary.is_over_budget for summary in all_books),
        num_wrong_sessions=sum(bool(summary.problems) for summary in all_books),
        problems=problems,
    )


def problems_of(books: Books) -> list[str]:
    """Where the counters of a session are not what its journal and its attempts say; [] when all is right."""
    account = books.account
    counted = Change(
        budget_nusd=account.budget_nusd,
        spent_nusd=account.spent_nusd,
        reserved_nusd=account.reserved_nusd,
        overshoot_nusd=account.overshoot_nusd,
    )
    of_attempts = Change(
        budget_nusd=account.budget_nusd,
        spent_nusd=sum(attempt.cost_nusd for attempt in books.attempts),
        reserved_nusd=sum(a.amount_nusd for a in books.attempts if a.state is AttemptState.RESERVED),
        overshoot_nusd=sum(attempt.overshoot_nusd for attempt in books.attempts),
    )
    problems = [
        f"session={account.session_id!r} counter={name} account={getattr(counted, name)} {what}={getattr(other, name)}"
        for what, other in (("journal", total(books.entries)), ("attempts", of_attempts))
        for name in ("budget_nusd", "spent_nusd", "reserved_nusd", "overshoot_nusd")
        if getattr(counted, name) != getattr(other, name)
    ]
    num_turns = sum(bool(attempt.decision_id) for attempt in books.attempts)
    if num_turns > account.num_turns:  # fewer are right: a ledger of the first release kept no attempts of its turns
        problems.append(
            f"session={account.session_id!r} counter=num_turns account={account.num_turns} attempts={num_turns}"
        )
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summary:
    """What is kept of a session's books."""

    num_attempts: int
    num_entries: int
    num_open: int
    num_overdue: int
    spent_nusd: int
    reserved_nusd: int
    overshoot_nusd: int
    is_over_budget: bool
    problems: list[str]

    @classmethod
    def of(cls, books: Books, now_s: float) -> "_Summary":
        account = books.account
        still_open = [attempt for attempt in books.attempts if attempt.state is AttemptState.RESERVED]
        return cls(
            num_attempts=len(books.attempts),
            num_entries=len(books.entries),
            num_open=len(still_open),
            num_overdue=sum(attempt.lease_until_s < now_s for attempt in still_open),
            spent_nusd=account.spent_nusd,
            reserved_nusd=account.reserved_nusd,
            overshoot_nusd=account.overshoot_nusd,
            is_over_budget=account.spent_nusd + account.reserved_nusd > account.budget_nusd,
            problems=problems_of(books),
        )


async def _all_books(ledger: Ledger) -> AsyncIterator[Books]:
    after = ""
    while page := await ledger.sessions(after, _PAGE):
        for session_id in page:
            yield await ledger.books(session_id)
        after = page[-1]
