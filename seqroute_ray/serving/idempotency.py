"""Idempotency keys: the same key and body get the stored answer, and pay once.

A key belongs to a session. While its request runs, another with the same key waits a while, then gets 409. A request
that ends without an answer gives its key back; the key of a killed replica is free again after the lease.
"""

import asyncio
import time

from seqroute_ray.core.ledger import Claim, Ledger, StoredAnswer
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.turn import Ask

POLL_S = 0.05


class Replays:
    """Claims keys and finds stored answers."""

    def __init__(self, ledger: Ledger, wait_s: float, lease_s: float, metrics: Metrics) -> None:
        self._ledger, self._wait_s, self._lease_s, self._metrics = ledger, wait_s, lease_s, metrics

    async def claim(self, ask: Ask) -> StoredAnswer | None:
        """The stored answer; None when this request is the one to answer. Raises RequestError (409)."""
        if ask.idempotency_key is None:
            return None
        deadline_s = time.monotonic() + self._wait_s
        while True:
            claim, stored = await self._ledger.claim(
                ask.session.session_id, ask.idempotency_key, ask.body_hash, self._lease_s
            )
            if claim is Claim.MINE:
                return None
            if claim is Claim.ANSWERED and stored is not None:
                self._metrics.add("replayed_answers")
                return StoredAnswer(
                    status=stored.status, headers={**stored.headers, "x-seqroute-replayed": "true"}, body=stored.body
                )
            if claim is Claim.CONFLICT:
                raise RequestError(
                    "this idempotency-key was used with another request body; use a new key for a new request",
                    status=409,
                    code="idempotency_conflict",
                )
            if time.monotonic() >= deadline_s:
                raise RequestError(
                    "a request with this idempotency-key is still running; repeat it later for its answer",
                    status=409,
                    code="idempotency_in_flight",
                    retry_after_s=1,
                )
            await asyncio.sleep(POLL_S)

    async def disclaim(self, ask: Ask) -> None:
        """The request ended without an answer: its key may be used again."""
        if ask.idempotency_key is not None:
            await self._ledger.disclaim(ask.session.session_id, ask.idempotency_key)
