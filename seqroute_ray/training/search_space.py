"""What `seqroute tune` searches: fields of CqlConfig and where their values come from. Needs neither torch nor Ray."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """Values between two numbers, uniform, or uniform in their logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


SEARCH_SPACE: dict[str, Interval | Choice] = {
    "cql_alpha": Interval(1e-4, 1.0, log=True),
    "lr": Interval(2e-4, 5e-3, log=True),
    "tau": Interval(2e-3, 5e-2, log=True),
    "history_noise": Interval(0.0, 1.0),
    "batch_size": Choice((512, 1024, 2048, 4096)),
    "hidden": Choice(((32, 32), (64, 64), (128, 128))),
    "risk_hidden": Choice(((16, 16), (32, 32), (64, 64))),
}
