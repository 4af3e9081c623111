"""The session budget: open, reserve, settle, release. The rules and the protocol; stores implement it.

    open     a session gets its budget once; a later, different budget is refused
    reserve  atomically: granted only if spent + reserved + amount <= budget
    settle   the true cost replaces the reservation, once; a bill above the reservation is recorded in full as overshoot
    release  the reservation is given back, once
Amounts are integer nano-dollars. One reservation is one attempt at one upstream call.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from seqroute_ray.core.errors import BudgetExhaustedError


@dataclass(frozen=True, slots=True)
class Account:
    """A session's money and the routing context that outlives any replica."""

    session_id: str
    budget_nusd: int
    spent_nusd: int
    reserved_nusd: int
    overshoot_nusd: int  # billed above reservations; part of spent
    context: dict[str, Any]  # what routing remembers of earlier turns; see serving.router

    @property
    def remaining_nusd(self) -> int:
        """What a new reservation may take; never negative."""
        return max(0, self.budget_nusd - self.spent_nusd - self.reserved_nusd)


class Ledger(Protocol):
    """A store of accounts. All methods are atomic and safe to call from many processes at once."""

    def open(self, session_id: str, budget_nusd: int) -> Account:
        """The account, made with this budget if it is new; an existing account keeps its own."""
        ...

    def account(self, session_id: str) -> Account:
        """The account as it is. Raises LedgerError on an unknown session."""
        ...

    def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        """Give the session a larger budget. Raises LedgerError on an unknown session, ConfigError on a smaller one."""
        ...

    def reserve(self, session_id: str, amount_nusd: int) -> str:
        """A reservation id. Raises BudgetExhaustedError when it does not fit, LedgerError on an unknown session."""
        ...

    def settle(self, reservation_id: str, cost_nusd: int, context: dict[str, Any]) -> Account:
        """Book the true cost and the new context. Raises LedgerError when already settled or released."""
        ...

    def release(self, reservation_id: str) -> Account:
        """Give the reservation back. Raises LedgerError when already settled or released."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


def exhausted(account: Account, amount_nusd: int) -> BudgetExhaustedError:
    """The error of a reservation that does not fit: says what is spent, reserved and left."""
    return BudgetExhaustedError(
        f"session {account.session_id!r} cannot reserve ${amount_nusd / 1e9:.9f}: "
        f"budget ${account.budget_nusd / 1e9:.9f}, spent ${account.spent_nusd / 1e9:.9f}, "
        f"reserved ${account.reserved_nusd / 1e9:.9f}, remaining ${account.remaining_nusd / 1e9:.9f}"
    )
