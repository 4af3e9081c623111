import asyncio
import logging

import pytest

from seqroute_ray.core.errors import ConfigError, LedgerUnavailable
from seqroute_ray.core.ledger import Attempt, Claim
from seqroute_ray.serving.ledgers.reaper import ReaperConfig, running_reaper
from seqroute_ray.serving.metrics import Metrics, PrometheusBackend
from tests.serving.ledgers.support import LEASE_S, session_of

QUICK = ReaperConfig(interval_s=0.01, prune_interval_s=0.01, answers_max_age_s=0.001)


async def test_orphans_are_charged_and_old_keys_dropped_while_it_runs(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metrics = Metrics(PrometheusBackend())
    async with session_of(place, 100) as ledger:
        await ledger.open("month/2026-11/team", 100)
        await ledger.reserve("month/2026-11/team", "orphan.month", "m", 60, 0.0)
        await ledger.reserve("s", "orphan", "m", 60, 0.0)
        await ledger.reserve("s", "running", "m", 40, LEASE_S)
        await ledger.claim("s", "k", "hash", 0.0)
        async with running_reaper(ledger, QUICK, metrics), asyncio.timeout(20):
            while "event=attempts_expired" not in caplog.text or "answers=1" not in caplog.text:
                await asyncio.sleep(0.005)
        assert (await ledger.account("s")).spent_nusd == 60
        assert (await ledger.account("s")).reserved_nusd == 40
        assert await ledger.claim("s", "k", "another hash", LEASE_S) == (Claim.MINE, None)
    # The month repeats the attempt of its session: it is told and counted once.
    assert "event=attempts_expired attempts=1 charged_usd=0.000000060" in caplog.text
    assert b'seqroute_expired_usd_total{model="m"} 6e-08' in (metrics.exposition() or b"")


async def test_it_goes_on_after_the_ledger_was_away(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with session_of(place, 100) as ledger:
        await ledger.reserve("s", "orphan", "m", 60, 0.0)
        expire, num_calls = ledger.expire, 0

        async def away_at_first(now_s: float) -> list[Attempt]:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 1:
                raise LedgerUnavailable("away")
            return await expire(now_s)

        monkeypatch.setattr(type(ledger), "expire", lambda _, now_s: away_at_first(now_s))
        async with running_reaper(ledger, QUICK, Metrics(PrometheusBackend())), asyncio.timeout(20):
            while (await ledger.account("s")).spent_nusd != 60:
                await asyncio.sleep(0.005)
    assert "event=reaper_waits error=away" in caplog.text


@pytest.mark.parametrize("name", ["interval_s", "prune_interval_s", "answers_max_age_s", "answers_max_bytes"])
def test_a_setting_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be > 0, got 0"):
        ReaperConfig(**{name: 0})
