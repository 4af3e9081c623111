"""Stored answers in Redis: idempotency keys claimed, given back, dropped with age; settling keeps the answers."""

import json
import time
import uuid

from seqroute_ray.core.ledger import Claim, StoredAnswer
from seqroute_ray.serving.ledgers import redis_scripts as scripts
from seqroute_ray.serving.ledgers.redis_client import RedisClient

_PAGE = 100  # keys looked at in one call
_ALWAYS_S = 1e300  # later than any lease


async def claim_key(
    client: RedisClient, session_id: str, key: str, body_hash: str, lease_s: float
) -> tuple[Claim, StoredAnswer | None]:
    now_s, token = time.time(), uuid.uuid4().hex  # the token tells a repeated call from another caller's
    args = (_member(session_id, key), key, body_hash, token, now_s, now_s + lease_s)
    status, *rest = await client.run(scripts.CLAIM, session_id, *args)
    claim = Claim(status.decode())
    if claim is not Claim.ANSWERED:
        return claim, None
    return claim, StoredAnswer(status=int(rest[0]), headers=json.loads(rest[1]), body=rest[2])


async def disclaim_key(client: RedisClient, session_id: str, key: str) -> None:
    args = (_member(session_id, key), key, _ALWAYS_S, 0)
    await client.run(scripts.DROP_ANSWER, session_id, *args)


async def prune_answers(client: RedisClient, now_s: float, max_age_s: float, max_bytes: int) -> int:
    """Drop what is older, then the oldest above the size; a key in flight stays until its lease has run out."""
    index, size = client.key("answers_by_age", ""), client.key("answer_bytes", "")
    num_dropped, num_kept = 0, 0
    older = (index, "-inf", f"({now_s - max_age_s!r}")
    while page := await client.ask("ZRANGEBYSCORE", *older, "LIMIT", num_kept, _PAGE):
        num_of_page = sum([await _drop(client, member, now_s) for member in page])
        num_dropped, num_kept = num_dropped + num_of_page, num_kept + len(page) - num_of_page
    num_kept = 0
    while int(await client.ask("GET", size) or 0) > max_bytes:
        oldest = await client.ask("ZRANGE", index, num_kept, num_kept)
        if not oldest:
            break
        dropped = await _drop(client, oldest[0], -_ALWAYS_S)
        num_dropped, num_kept = num_dropped + dropped, num_kept + 1 - dropped
    return num_dropped


async def _drop(client: RedisClient, member: bytes, lease_before_s: float) -> int:
    """1 when it was dropped; 0 when it is in flight with a lease that lasts longer."""
    session_id, key = json.loads(member)
    dropped: int = await client.run(scripts.DROP_ANSWER, session_id, member, key, lease_before_s, 1)
    return dropped


def _member(session_id: str, key: str) -> str:
    """Of the index by age."""
    return json.dumps([session_id, key])
