"""What pays for a turn: the session's account and, where the API key has a monthly budget, the month's.

Both are accounts of the ledger, and an attempt holds a reservation in each. The month is reserved last and ended
first: a kill in between leaves money held too long, never spent twice, and the reaper ends it.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

from seqroute_ray.core.errors import BudgetExhaustedError, LedgerError, UnknownSessionError
from seqroute_ray.core.ledger import Account, Ledger, StoredAnswer, TurnRecord

_MONTHS = "month/"  # begins the names of their accounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """The budget of an API key for the present month (UTC)."""

    account_id: str
    budget_nusd: int


def month_of(owner: str, budget_nusd: int | None) -> Month | None:
    """The month's account of a key; None where the key has no monthly budget."""
    if budget_nusd is None:
        return None
    # Sessions are named OWNER:NAME: without a colon, no session of any key is this account.
    return Month(account_id=f"{_MONTHS}{time.strftime('%Y-%m', time.gmtime())}/{owner}", budget_nusd=budget_nusd)


def is_month(account_id: str) -> bool:
    """A month's attempts repeat those of its sessions."""
    return account_id.startswith(_MONTHS)


class Purse:
    """The accounts of one turn."""

    def __init__(self, ledger: Ledger, account: Account, month: Month | None, lease_s: float) -> None:
        self._ledger, self._month, self._lease_s = ledger, month, lease_s
        self.account = account  # of the session, as last seen
        self.month: Account | None = None  # as last seen; None without a monthly budget

    @property
    def session_id(self) -> str:
        return self.account.session_id

    async def month_left_nusd(self) -> int | None:
        """What the month leaves to this turn; None without a monthly budget."""
        if self._month is None:
            return None
        try:
            month = await self._ledger.account(self._month.account_id)
        except UnknownSessionError:
            month = await self._ledger.open(self._month.account_id, self._month.budget_nusd)
        if month.budget_nusd < self._month.budget_nusd:  # the key's settings were raised
            month = await self._ledger.raise_budget(self._month.account_id, self._month.budget_nusd)
        self.month = month
        return month.remaining_nusd

    async def refresh(self) -> Account:
        self.account = await self._ledger.account(self.session_id)
        return self.account

    async def reserve(self, attempt_id: str, model: str, amount_nusd: int) -> None:
        """Raises BudgetExhaustedError when session or month cannot hold the amount; then nothing is held."""
        self.account = await self._ledger.reserve(self.session_id, attempt_id, model, amount_nusd, self._lease_s)
        if self._month is None:
            return
        try:
            await self._ledger.reserve(self._month.account_id, in_month(attempt_id), model, amount_nusd, self._lease_s)
        except BudgetExhaustedError:
            self.account = await self._ledger.release(self.session_id, attempt_id)
            raise

    async def settle(
        self,
        attempt_id: str,
        cost_nusd: int,
        turn: TurnRecord | None = None,
        answer: tuple[str, StoredAnswer] | None = None,
    ) -> Account:
        """Charge the attempt, with the turn it answered and the answer to keep, if any."""
        if self._month is not None:
            await self._ledger.settle(self._month.account_id, in_month(attempt_id), cost_nusd)
        self.account = await self._ledger.settle(self.session_id, attempt_id, cost_nusd, turn=turn, answer=answer)
        return self.account

    async def forget(self, attempt_id: str) -> None:
        """Give back what a reservation may hold that was not confirmed: in the month, the session, both or neither."""
        for release in (self._release_month, self._release_session):
            with suppress(LedgerError):  # it holds nothing
                await release(attempt_id)

    async def release(self, attempt_id: str) -> None:
        """Give the attempt's money back."""
        await self._release_month(attempt_id)
        await self._release_session(attempt_id)

    async def _release_month(self, attempt_id: str) -> None:
        if self._month is not None:
            await self._ledger.release(self._month.account_id, in_month(attempt_id))

    async def _release_session(self, attempt_id: str) -> None:
        self.account = await self._ledger.release(self.session_id, attempt_id)


def in_month(attempt_id: str) -> str:
    """Id of the month's attempt that repeats a session's."""
    return f"{attempt_id}.month"
