"""What the server counts, for Prometheus: on Serve through Ray's metrics agent, elsewhere at GET /metrics.

Names and labels never hold a session, a key or a text.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

STAGES_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0)
_COUNTERS = {
    "decisions": ("Decisions", ("model", "chosen_by", "policy")),
    "degraded": ("Decisions that money changed, by rung of the ladder", ("rung",)),
    "budget_refusals": ("Requests refused for want of money (402)", ("scope",)),
    "false_blocks": ("Refusals though budget less spent would have paid: money was only reserved", ()),
    "spent_usd": ("Charged", ("model",)),
    "overshoot_usd": ("Billed above reservations; 0 unless a provider ignores max_tokens", ("model",)),
    "expired_usd": ("Charged by the reaper: attempts whose replica died, in full", ("model",)),
    "upstream_errors": ("Failed attempts", ("model", "kind")),
    "answers": ("HTTP answers", ("route", "status")),
    "replayed_answers": ("Answers given again for an idempotency key", ()),
    "feedback": ("Scores taken", ()),
}
_GAUGES = {
    "reserved_usd": ("Held by attempts of this replica", ()),
    "ledger_lag": ("Settlements of this replica that wait for the ledger", ()),
    "open_circuits": ("Models whose circuit is open", ()),
}
_HISTOGRAMS = {"stage_seconds": ("Duration of a stage of a turn", ("stage",))}


Adder = Callable[[float], None]


class Series(Protocol):
    """One metric: gives what adds to it under these labels."""

    def __call__(self, **labels: str) -> Adder: ...


class Backend(Protocol):
    """Makes metrics; amounts are added to counters and gauges, observed by histograms."""

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Series: ...

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Series: ...

    def histogram(self, name: str, description: str, labels: tuple[str, ...]) -> Series: ...

    def exposition(self) -> bytes | None:
        """The text of GET /metrics; None where something else exposes them."""
        ...


class Metrics:
    """All metrics of a replica: `metrics.add("spent_usd", 0.01, model=...)`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        makers = ((_COUNTERS, backend.counter), (_GAUGES, backend.gauge), (_HISTOGRAMS, backend.histogram))
        self._series: dict[str, Series] = {
            name: make(f"seqroute_{name}", description, labels)
            for table, make in makers
            for name, (description, labels) in table.items()
        }
        self._adders: dict[tuple[str, ...], Adder] = {}  # a metric's name and the values of its labels, in one order

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = (name, *labels.values())
        adder = self._adders.get(key)
        if adder is None:
            adder = self._adders[key] = self._series[name](**labels)
        adder(amount)

    def exposition(self) -> bytes | None:
        return self._backend.exposition()


class PrometheusBackend:
    """prometheus_client in a registry of its own."""

    def __init__(self) -> None:
        import prometheus_client

        self._client, self._registry = prometheus_client, prometheus_client.CollectorRegistry()

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        return _prometheus(self._client.Counter(name, description, labels, registry=self._registry), "inc")

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        return _prometheus(self._client.Gauge(name, description, labels, registry=self._registry), "inc")

    def histogram(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        metric = self._client.Histogram(name, description, labels, registry=self._registry, buckets=STAGES_S)
        return _prometheus(metric, "observe")

    def exposition(self) -> bytes:
        return self._client.generate_latest(self._registry)


def _prometheus(metric: Any, method: str) -> Series:
    def series(**labels: str) -> Adder:
        add: Adder = getattr(metric.labels(**labels) if labels else metric, method)
        return add

    return series


class RayBackend:
    """ray.util.metrics: every replica reports to its node's agent, which Prometheus scrapes."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._metrics = metrics

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        metric = self._metrics.Counter(name, description, labels)

        def series(**labels: str) -> Adder:
            def add(amount: float) -> None:
                if amount > 0:  # Ray refuses to add nothing
                    metric.inc(amount, tags=labels)

            return add

        return series

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        metric = self._metrics.Gauge(name, description, labels)

        def series(**labels: str) -> Adder:
            now = 0.0  # Ray's gauges are set, not added to

            def add(amount: float) -> None:
                nonlocal now
                now += amount
                metric.set(now, tags=labels)

            return add

        return series

    def histogram(self, name: str, description: str, labels: tuple[str, ...]) -> Series:
        metric = self._metrics.Histogram(name, description, list(STAGES_S), labels)
        return lambda **labels: partial(metric.observe, tags=labels)

    def exposition(self) -> None:
        return None
