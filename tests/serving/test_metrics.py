"""GET /metrics after real traffic: what was decided, refused, charged and answered."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.serving.metrics import Metrics, PrometheusBackend, RayBackend

from .scripted_provider import whole
from .service_support import TURN_KEY, answered, api_over, keys_for, refused, streamed
from .support import QUESTIONS, trio

MODEL = trio().names[2]


def test_traffic_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        scripts = (answered(), streamed("yes"), refused(500), answered(completion_tokens=1000))
        async with api_over(tmp_path, *scripts, retries=1) as api:
            await api.chat(model=MODEL, max_tokens=50)
            await api.chat(model=MODEL, max_tokens=50, stream=True)
            await api.chat(headers={"x_session_id": "poor", "x_session_budget_usd": "0.000001"})
            await api.chat(headers={"x_max_turn_usd": "0.000001"})
            retried = await api.chat(model=MODEL, max_tokens=50)
            await api.chat(n=2)
            decision_id = retried.headers["x-seqroute-decision"]
            await api.call("POST", "/v1/feedback", {"decision_id": decision_id, "score": 1})
            await api.settled()
            reply = await api.call("GET", "/metrics")
            samples = await api.metrics()
            session = await api.session()
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        for name in ("s", "poor", *QUESTIONS):
            assert f'"{name}"' not in reply.body
        decisions = f'seqroute_decisions_total{{chosen_by="pinned",model="{MODEL}",policy="current"}}'
        assert samples[decisions] == 3
        assert samples[f'seqroute_spent_usd_total{{model="{MODEL}"}}'] == pytest.approx(session["spent_usd"])
        assert samples[f'seqroute_overshoot_usd_total{{model="{MODEL}"}}'] == pytest.approx(session["overshoot_usd"])
        assert session["overshoot_usd"] > 0
        assert samples[f'seqroute_upstream_errors_total{{kind="server",model="{MODEL}"}}'] == 1
        assert samples['seqroute_budget_refusals_total{scope="session"}'] == 1
        assert samples['seqroute_budget_refusals_total{scope="turn"}'] == 1
        assert samples["seqroute_false_blocks_total"] == 0
        assert samples["seqroute_feedback_total"] == 1
        assert samples["seqroute_reserved_usd"] == pytest.approx(0, abs=1e-12)
        chat = 'seqroute_answers_total{route="/v1/chat/completions",status="%d"}'
        assert [samples[chat % status] for status in (200, 400, 402)] == [3, 1, 2]
        assert samples['seqroute_stage_seconds_count{stage="parse"}'] == 5
        assert samples['seqroute_stage_seconds_count{stage="first_byte"}'] == 3

    asyncio.run(scenario())


def test_a_refusal_only_because_money_is_held_counts_as_a_false_block(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *answered()]) as api:
            running = asyncio.create_task(api.chat(max_tokens=100_000))  # as much as the session has
            await api.provider.asked()
            refusal = await api.chat("word " * 2000)
            gate.set()
            await running
            samples = await api.metrics()
        assert refusal.status == 402
        assert refusal.body["error"]["reserved_usd"] > 0
        assert samples["seqroute_false_blocks_total"] == 1

    asyncio.run(scenario())


def test_a_refusal_that_the_whole_budget_could_not_pay_is_no_false_block(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with api_over(tmp_path, [gate, *answered()]) as api:
            poor = {"x_session_id": "poor", "x_session_budget_usd": "0.0001"}
            running = asyncio.create_task(api.chat(max_tokens=10, headers=poor))
            await api.provider.asked()
            refusal = await api.chat("word " * 2000, headers=poor)
            gate.set()
            await running
            samples = await api.metrics()
        assert refusal.status == 402
        assert refusal.body["error"]["reserved_usd"] > 0
        assert refusal.body["error"]["scope"] == "session"
        assert samples["seqroute_false_blocks_total"] == 0

    asyncio.run(scenario())


def test_models_that_are_left_alone_are_a_gauge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        settings = {"breaker": {"failures_to_open": 1, "cooldown_s": 30.0}, "retries": 0}
        async with api_over(tmp_path, refused(500), [whole({})], **settings) as api:
            before = await api.metrics()
            await api.chat(model=MODEL)
            after = await api.metrics()
        assert (before["seqroute_open_circuits"], after["seqroute_open_circuits"]) == (0, 1)
        assert f"circuit_open model={MODEL} next_try_in_s=30" in caplog.text

    asyncio.run(scenario())


def test_metrics_need_the_scope_admin(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys = [{**keys_for("team")[0], "scopes": ["route", "sessions"]}]
        async with api_over(tmp_path, answered(), keys=keys) as api:
            none = await api.call("GET", "/metrics")
            wrong = await api.call("GET", "/metrics", authorization=f"Bearer {TURN_KEY}")
        assert (none.status, wrong.status) == (401, 403)

    asyncio.run(scenario())


def test_every_metric_is_described() -> None:
    text = (Metrics(PrometheusBackend()).exposition() or b"").decode()
    for name in re.findall(r"# TYPE (\w+) ", text):
        assert f"# HELP {name} " in text
        assert name.startswith("seqroute_")


def test_rays_metrics_get_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own classes, whose calls are kept: counters refuse 0, gauges are set."""
    from ray.util import metrics as rays

    seen: list[tuple[str, float, dict[str, str]]] = []
    for kind, method in ((rays.Counter, "inc"), (rays.Gauge, "set"), (rays.Histogram, "observe")):

        def keep(metric: Any, value: float, tags: dict[str, str], method: str = method) -> None:
            assert method != "inc" or value > 0
            seen.append((metric.info["name"], value, tags))

        monkeypatch.setattr(kind, method, keep)
    metrics = Metrics(RayBackend())
    for amount in (0.0, 0.5):
        metrics.add("spent_usd", amount, model="a")
        metrics.add("reserved_usd", amount + 1)
        metrics.add("stage_seconds", amount, stage="parse")
    assert seen == [
        ("seqroute_reserved_usd", 1.0, {}),
        ("seqroute_stage_seconds", 0.0, {"stage": "parse"}),
        ("seqroute_spent_usd", 0.5, {"model": "a"}),
        ("seqroute_reserved_usd", 2.5, {}),
        ("seqroute_stage_seconds", 0.5, {"stage": "parse"}),
    ]
