"""The session budget: words and protocol; the rules are in `ledger_rules`, stores implement both.

    open     a session gets its budget once; a later, different budget changes nothing
    reserve  granted only if spent + reserved + amount <= budget; one reservation is one attempt at one upstream call
    settle   the true cost replaces the reservation, once; a bill above the reservation is recorded in full as overshoot
    release  the reservation is given back, once: the provider surely did not work
    expire   a reservation whose lease ran out (its replica died) is charged in full: the provider may have worked
    correct  a settled or expired attempt gets the cost that turned out later
A caller that does not know whether its call came through repeats it: the same reserve, settle or release of the same
attempt changes nothing the second time and returns the account.
Amounts are integer nano-dollars. Every change appends one `Entry`, the signed change of each counter, in the same
transaction: the sum of a session's entries is its account, at any moment.

What a turn makes several of is a NamedTuple: a frozen dataclass takes four times as long to make.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from seqroute_ray.core.errors import ConfigError

MAX_BUDGET_NUSD = 10**15  # a million USD: sums stay exact in 64-bit integers and in the doubles of Redis' Lua


class Account(NamedTuple):
    """A session's money, and what routing remembers of its turns; it outlives any replica."""

    session_id: str
    budget_nusd: int
    spent_nusd: int = 0
    reserved_nusd: int = 0
    overshoot_nusd: int = 0  # billed above reservations; part of spent
    num_turns: int = 0  # turns answered
    # [R + 1] sum over the turns answered of QueryFeatures.summary; () before the first
    summary_sum: tuple[float, ...] = ()
    latest: Mapping[str, Any] = {}  # what the last turn answered leaves behind; see serving.router
    closed: bool = False

    @property
    def remaining_nusd(self) -> int:
        """What a new reservation may take; never negative."""
        return max(0, self.budget_nusd - self.spent_nusd - self.reserved_nusd)


class AttemptState(StrEnum):
    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class Attempt(NamedTuple):
    """One attempt at one upstream call, and the money held or charged for it."""

    attempt_id: str
    session_id: str
    model: str
    amount_nusd: int  # reserved
    lease_until_s: float  # seconds since 1970; after it the reaper charges the reservation
    state: AttemptState = AttemptState.RESERVED
    cost_nusd: int = 0  # charged so far
    decision_id: str = ""  # of the turn that it was settled with

    @property
    def overshoot_nusd(self) -> int:
        return max(0, self.cost_nusd - self.amount_nusd)


class Change(NamedTuple):
    """What one event adds to a session's counters; negative takes away."""

    budget_nusd: int = 0
    spent_nusd: int = 0
    reserved_nusd: int = 0
    overshoot_nusd: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the append-only journal."""

    session_id: str
    kind: str  # open, raise, reserve, settle, release, expire, correct, close
    attempt_id: str  # "" for open, raise, close
    change: Change
    at_s: float  # seconds since 1970


class TurnRecord(NamedTuple):
    """An answered turn: what it adds to routing's memory, and its record in the decision log."""

    decision_id: str
    summary: tuple[float, ...]  # [R + 1] is added to the account's summary_sum
    latest: dict[str, Any]  # replaces the account's
    record: dict[str, Any]  # JSON: the decision, tokens, cost, reason; never text of prompt or answer
    embedding: bytes  # [D] float16 of the query
    owner: str = ""  # id of the API key


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """An answer kept for an idempotency key; a stream is kept as the bytes that were sent."""

    status: int
    headers: dict[str, str]
    body: bytes


class Claim(StrEnum):
    """What an idempotency key stands for when a request brings it."""

    MINE = "mine"  # new, or its holder died: answer it, then settle with the answer or `disclaim`
    IN_FLIGHT = "in_flight"
    CONFLICT = "conflict"  # the same key with another body
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A score for a decision or a whole session; the last one of a judge counts."""

    target: str  # a decision id, or a session id
    judge: str
    score: float  # in [0, 1]
    at_s: float
    owner: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:
            raise ConfigError(f"feedback on {self.target!r}: score must be in [0, 1], got {self.score}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A session's money at one moment, three times over: what an audit compares."""

    account: Account
    attempts: list[Attempt]
    entries: list[Entry]  # oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTurn:
    """An answered turn as the decision log has it."""

    record: dict[str, Any]  # as `Ledger.decision` returns it
    embedding: bytes  # [D] float16


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLog:
    """The decision log of a session."""

    session_id: str
    turns: list[LoggedTurn]  # of turn 0, 1, 2, ...
    feedback: list[Feedback]  # on the session as a whole, oldest first


class Ledger(Protocol):
    """A store of accounts, attempts, entries, decisions, feedback and stored answers.

    All methods are atomic and safe to call from many tasks, processes and, where the store allows it, machines at
    once; what a method has returned survives a kill of anything. A store that does not answer raises LedgerUnavailable;
    whether the call came through is then unknown, and all but `expire` and `claim` may be repeated as they are.
    """

    async def open(self, session_id: str, budget_nusd: int) -> Account:
        """The account, made with this budget if it is new; an existing account keeps its own."""
        ...

    async def account(self, session_id: str) -> Account:
        """The account as it is. Raises LedgerError on an unknown session."""
        ...

    async def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        """Give the session a larger budget. Raises LedgerError on an unknown session, ConfigError on a smaller one."""
        ...

    async def close_session(self, session_id: str) -> Account:
        """No more reservations; running attempts still end. Raises LedgerError on an unknown session."""
        ...

    async def reserve(self, session_id: str, attempt_id: str, model: str, amount_nusd: int, lease_s: float) -> Account:
        """The account after. An amount of 0 always fits, also in a session over its budget (a free model).

        Raises BudgetExhaustedError when it does not fit, LedgerError on an unknown or closed session. Repeated as it
        was while the attempt is open, it reserves nothing and returns the account; anything else under an attempt id
        that was used raises LedgerError.
        """
        ...

    async def settle(
        self,
        session_id: str,
        attempt_id: str,
        cost_nusd: int,
        *,
        turn: TurnRecord | None = None,
        answer: tuple[str, StoredAnswer] | None = None,
    ) -> Account:
        """Book the true cost; with it, in one transaction, the answered turn and (idempotency key, answer).

        The turn gets the session's next number. The answer is kept if its key is claimed and has none yet. An attempt
        that has expired meanwhile is corrected, and settled by that. Raises LedgerError when it is unknown, or already
        settled or released; repeated as it was (cost and decision id), it books nothing and returns the account.
        """
        ...

    async def release(self, session_id: str, attempt_id: str) -> Account:
        """Give the reservation back; once more changes nothing. Raises LedgerError when it is unknown or charged."""
        ...

    async def correct(self, session_id: str, attempt_id: str, cost_nusd: int) -> Account:
        """A late bill: the attempt's cost becomes this. Raises LedgerError unless it was settled or expired."""
        ...

    async def expire(self, now_s: float, max_attempts: int = 1000) -> list[Attempt]:
        """Charge attempts whose lease ran out before now_s; each is returned to one caller only."""
        ...

    async def claim(
        self, session_id: str, key: str, body_hash: str, lease_s: float
    ) -> tuple[Claim, StoredAnswer | None]:
        """Take an idempotency key of a session; the stored answer with ANSWERED.

        Make the lease longer than any answer takes: after it, the key is MINE to the next one who brings it.
        """
        ...

    async def disclaim(self, session_id: str, key: str) -> None:
        """Give a key taken back: its request ended without an answer."""
        ...

    async def decision(self, decision_id: str) -> dict[str, Any]:
        """The record of an answered turn, with owner, session_id, turn, at_s and `feedback`. Raises LedgerError.

        `feedback`: list of judge, score, at_s and owner, oldest first. Where the record has a cost_nusd, later
        corrections of its attempt are in it.
        """
        ...

    async def add_feedback(self, feedback: Feedback) -> None:
        """Keep a score; one of the same target and judge is replaced. Raises LedgerError on an unknown target."""
        ...

    async def entries(self, session_id: str) -> list[Entry]:
        """A session's journal, oldest first; empty for an unknown session."""
        ...

    async def books(self, session_id: str) -> Books:
        """Account, attempts and journal as of one moment. Raises LedgerError on an unknown session."""
        ...

    async def attempt(self, attempt_id: str) -> Attempt:
        """Raises LedgerError when it is unknown."""
        ...

    async def sessions(self, after: str, limit: int) -> list[str]:
        """The first ids above `after`, in order: with the last id as the next `after`, all sessions page by page."""
        ...

    async def changed(self, after: int, limit: int) -> list[tuple[int, str]]:
        """(number, session) of the first changes of the decision log above `after`, a session with its last one alone.

        A turn, feedback and a correction each take the next number, in the order in which they are committed.
        """
        ...

    async def session_log(self, session_id: str) -> SessionLog:
        """Turns and feedback as of one moment. Raises LedgerError on an unknown session."""
        ...

    async def prune(self, now_s: float, *, answers_max_age_s: float, answers_max_bytes: int) -> int:
        """Drop stored answers that are too old, then the oldest above the size; the number dropped."""
        ...

    async def ping(self) -> None:
        """Return when the store answers. Raises LedgerUnavailable."""
        ...

    async def close(self) -> None:
        """Finish what was accepted; release files and connections."""
        ...
