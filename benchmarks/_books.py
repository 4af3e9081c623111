"""Three books of one run compared: the ledger's, the provider's log of calls, and what clients were told."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from _traffic import Told

from seqroute_ray.core.errors import UnknownSessionError
from seqroute_ray.core.ledger import Attempt, AttemptState, Books, Ledger
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.ledgers.audit import audit
from seqroute_ray.serving.ledgers.factory import open_ledger
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.usage import Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Promises are broken where a field of PROMISES is not 0."""

    num_sessions: int
    num_exhausted: int  # sessions that cannot pay one more token
    provider_calls: int
    overshoot_nusd: int  # what the provider bills above sessions' budgets, by its own log
    ledger_overshoot_nusd: int  # what the ledger has charged or holds above sessions' budgets
    changed_budgets: int  # of sessions that have another one than their first request said
    wrong_sessions: int  # whose counters are not what their journal and attempts say
    unaccounted_calls: int  # which the ledger neither charged nor, where nothing was billed, released
    calls_sent_twice: int  # with one attempt's id
    open_attempts: int  # still reserved
    expired_attempts: int  # charged by the reaper
    released_attempts: int
    lost_decisions: int  # which a client has an answer of, and the ledger no record
    untold_nusd: int  # told to clients and not spent
    undercharged_nusd: int  # billed above what was charged, call by call
    undercharged_calls: int

    PROMISES = (
        "overshoot_nusd",
        "ledger_overshoot_nusd",
        "changed_budgets",
        "wrong_sessions",
        "unaccounted_calls",
        "calls_sent_twice",
        "open_attempts",
        "lost_decisions",
        "untold_nusd",
    )

    @property
    def broken(self) -> list[str]:
        return [name for name in self.PROMISES if getattr(self, name)]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "broken": self.broken}


Prices = Mapping[str, Pricing]  # by model


def prices_of(config: ServingConfig) -> Prices:
    return {upstream.model: Pricing.of(upstream) for upstream in config.upstreams}


def read_calls(log: Path, begin: int = 0) -> list[dict[str, Any]]:
    """The provider's calls from the begin-th on."""
    with log.open() as lines:
        return [json.loads(line) for number, line in enumerate(lines) if number >= begin]


async def compare(
    config: ServingConfig, told: Sequence[Told], calls: Sequence[dict[str, Any]], owner: str = "local"
) -> Compared:
    """The books of these sessions; the audit is of the whole ledger."""
    ledger = await open_ledger(config.ledger, config.redis_password_env)
    try:
        report = await audit(ledger)
        books = {each.session_id: await _books(ledger, f"{owner}:{each.session_id}") for each in told}
    finally:
        await ledger.close()
    kept = {name: each for name, each in books.items() if each is not None}
    attempts = {attempt.attempt_id: attempt for each in kept.values() for attempt in each.attempts}
    budgets = {f"{owner}:{each.session_id}": each.budget_nusd for each in told}
    prices = prices_of(config)
    billed = Counter[str]()
    short_nusd = []
    for call in calls:
        attempt = attempts.get(call["attempt_id"])
        if attempt is not None:
            billed[attempt.session_id] += billed_nusd(call, prices)
            short_nusd.append(billed_nusd(call, prices) - attempt.cost_nusd)
            if short_nusd[-1] > 0:
                logger.warning("undercharged_nusd=%d call=%s attempt=%s", short_nusd[-1], call, attempt)
    states = Counter(attempt.state for attempt in attempts.values())
    return Compared(
        num_sessions=len(told),
        num_exhausted=sum(each.account.remaining_nusd < least_nusd(prices) for each in kept.values()),
        provider_calls=len(calls),
        overshoot_nusd=sum(max(0, nusd - budgets[name]) for name, nusd in billed.items()),
        ledger_overshoot_nusd=sum(max(0, _used_nusd(each) - each.account.budget_nusd) for each in kept.values()),
        changed_budgets=sum(each.account.budget_nusd != budgets[each.account.session_id] for each in kept.values()),
        wrong_sessions=report.num_wrong_sessions,
        unaccounted_calls=sum(not _is_accounted(attempts.get(call["attempt_id"]), call, prices) for call in calls),
        calls_sent_twice=len(calls) - len({call["attempt_id"] for call in calls}),
        open_attempts=states[AttemptState.RESERVED],
        expired_attempts=states[AttemptState.EXPIRED],
        released_attempts=states[AttemptState.RELEASED],
        lost_decisions=sum(_num_lost(each, books[each.session_id]) for each in told),
        untold_nusd=sum(max(0, each.cost_nusd - _spent_nusd(books[each.session_id])) for each in told),
        undercharged_nusd=sum(nusd for nusd in short_nusd if nusd > 0),
        undercharged_calls=sum(nusd > 0 for nusd in short_nusd),
    )


async def wait_until_quiet(config: ServingConfig, provider_url: str, timeout_s: float) -> None:
    """Return when the provider has no call and the ledger no open attempt, or the time is up: `compare` tells."""
    deadline_s = time.monotonic() + timeout_s
    async with aiohttp.ClientSession() as http:
        while time.monotonic() < deadline_s:
            async with http.get(provider_url.removesuffix("/v1") + "/calls") as response:
                in_flight = (await response.json())["in_flight"]
            if not in_flight and not await _num_open(config):
                return
            await asyncio.sleep(0.5)


def billed_nusd(call: Mapping[str, Any], prices: Prices) -> int:
    usage = Usage(prompt_tokens=call["prompt_tokens"], completion_tokens=call["completion_tokens"])
    return prices[call["model"]].cost_nusd(usage)


async def _num_open(config: ServingConfig) -> int:
    ledger = await open_ledger(config.ledger, config.redis_password_env)
    try:
        return (await audit(ledger)).num_open_attempts
    finally:
        await ledger.close()


async def _books(ledger: Ledger, session_id: str) -> Books | None:
    """None where no request of the session came as far as the ledger."""
    try:
        return await ledger.books(session_id)
    except UnknownSessionError:
        return None


def _is_accounted(attempt: Attempt | None, call: Mapping[str, Any], prices: Prices) -> bool:
    if attempt is None or attempt.state is AttemptState.RESERVED:
        return False
    return attempt.state is not AttemptState.RELEASED or not billed_nusd(call, prices)


def _num_lost(told: Told, books: Books | None) -> int:
    known = {attempt.decision_id for attempt in books.attempts} if books else set()
    return sum(decision_id not in known for decision_id in told.decisions)


def _used_nusd(books: Books) -> int:
    return books.account.spent_nusd + books.account.reserved_nusd


def _spent_nusd(books: Books | None) -> int:
    return books.account.spent_nusd if books else 0


def least_nusd(prices: Prices) -> int:
    """Of the cheapest model, a prompt of a few words and one token."""
    return min(price.worst_case_nusd(40, 1) for price in prices.values())
