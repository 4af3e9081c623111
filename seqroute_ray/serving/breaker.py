"""A circuit breaker a model: after several failures in a row nobody asks it for a while, then one call at a time tries.

Each replica has its own, in memory: it is a shortcut past a dead provider, not a promise, and a new replica learns it
again from a few failures.

    closed   every call is admitted; `failures_to_open` provider's faults in a row open it
    open     none is admitted until the cooldown is over
    probing  one call is admitted; it closes the breaker, or opens it for twice as long as before
"""

from collections.abc import Callable
from dataclasses import dataclass

from seqroute_ray.core.errors import ConfigError

Clock = Callable[[], float]  # monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When a model is left alone, and for how long."""

    failures_to_open: int = 5  # in a row: a single one is common with every provider
    cooldown_s: float = 5.0  # of the first opening; also how long a probe may take before another one goes
    max_cooldown_s: float = 120.0  # each failed probe doubles the cooldown up to this

    def __post_init__(self) -> None:
        if self.failures_to_open < 1:
            raise ConfigError(f"failures_to_open must be >= 1, got {self.failures_to_open}")
        if not 0 < self.cooldown_s <= self.max_cooldown_s:
            raise ConfigError(
                f"cooldown_s must be > 0 and <= max_cooldown_s, got {self.cooldown_s} and {self.max_cooldown_s}"
            )


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to call a model once; hand it back with the outcome."""

    model: str
    is_probe: bool


@dataclass(slots=True)
class _Circuit:
    num_failures: int = 0  # in a row
    cooldown_s: float = 0.0  # 0: closed
    closed_until_s: float = 0.0  # no call before it

    @property
    def is_open(self) -> bool:
        return self.cooldown_s > 0


class Breaker:
    """The circuits of all models."""

    def __init__(self, config: BreakerConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._circuits: dict[str, _Circuit] = {}

    def admits(self, model: str) -> bool:
        """Whether `begin` would give leave now; changes nothing."""
        return self.wait_s(model) == 0

    @property
    def num_open(self) -> int:
        """Models whose circuit is open, or waits for the outcome of a probe."""
        return sum(circuit.is_open for circuit in self._circuits.values())

    def wait_s(self, model: str) -> float:
        """Seconds until the next call is admitted; 0: now."""
        circuit = self._circuits.get(model)
        return max(0.0, circuit.closed_until_s - self._clock()) if circuit and circuit.is_open else 0.0

    def begin(self, model: str) -> Permit | None:
        """Leave for one call; None while the model is left alone.

        A probe whose outcome never comes, because its client hung up, keeps the others out for one more cooldown.
        """
        if not self.admits(model):
            return None
        circuit = self._circuits.setdefault(model, _Circuit())
        if circuit.is_open:
            circuit.closed_until_s = self._clock() + circuit.cooldown_s
        return Permit(model, circuit.is_open)

    def succeed(self, permit: Permit) -> None:
        """The provider answered, if only to refuse the request for what it says."""
        circuit = self._circuits[permit.model]
        if permit.is_probe or not circuit.is_open:  # else the call began before the breaker opened: old news
            self._circuits[permit.model] = _Circuit()

    def fail(self, permit: Permit, retry_after_s: float | None = None) -> None:
        """A fault of the provider (`UpstreamError.is_providers_fault`).

        retry_after_s: as it asks; open at least so long.
        """
        circuit, config = self._circuits[permit.model], self._config
        circuit.num_failures += 1
        if circuit.is_open:
            if not permit.is_probe:
                return
            circuit.cooldown_s = min(2 * circuit.cooldown_s, config.max_cooldown_s)
        elif circuit.num_failures >= config.failures_to_open:
            circuit.cooldown_s = config.cooldown_s
        else:
            return
        circuit.closed_until_s = self._clock() + max(circuit.cooldown_s, retry_after_s or 0.0)
