"""A ledger that looks first and adds after, as gateways do that do not reserve in one step: chaos.py must find it."""

import sqlite3
import time

from seqroute_ray.core.ledger import Account, Attempt, Change
from seqroute_ray.core.ledger_rules import reserving
from seqroute_ray.serving.ledgers import sqlite_writes as writes
from seqroute_ray.serving.ledgers.sqlite import SqliteLedger
from seqroute_ray.serving.ledgers.sqlite_rows import account_of


class CheckThenAddLedger(SqliteLedger):
    """Between the look and the addition, others have looked too."""

    async def reserve(self, session_id: str, attempt_id: str, model: str, amount_nusd: int, lease_s: float) -> Account:
        reserving(await self.account(session_id), amount_nusd)
        attempt = Attempt(
            attempt_id=attempt_id,
            session_id=session_id,
            model=model,
            amount_nusd=amount_nusd,
            lease_until_s=time.time() + lease_s,
        )

        def add(db: sqlite3.Connection) -> Account:
            db.execute(
                "INSERT INTO attempts (attempt_id, session_id, model, amount_nusd, lease_until_s, state) "
                "VALUES (?, ?, ?, ?, ?, 'reserved')",
                (attempt_id, session_id, model, amount_nusd, attempt.lease_until_s),
            )
            account = account_of(db, session_id)
            return writes._book(db, account, "reserve", attempt_id, Change(reserved_nusd=amount_nusd))

        return await self._writer.run(add)
