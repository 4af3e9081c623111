"""Settings of an evaluation; importing them needs no plotting library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seqroute_ray.core.errors import ConfigError

BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)  # multiples of the reference cost
LAMBDA_GRID = (
    0.0,
    0.1,
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
)  # quality per reference cost; divided by it, quality per USD


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Replay on sessions with outcomes. Each field is a flag of `seqroute evaluate`."""

    policy: Path  # artefact folder
    sessions: Path  # session Parquet; its `part` is used, or all when it names no parts; with every model's outcome
    out: Path  # folder of report.json and report.html
    part: Literal["tune", "test"] = "test"  # test is for the last word, tune for choosing
    fit_sessions: Path | None = None  # what the policy learned from: for the baselines that learn
    tune_sessions: Path | None = None  # chooses the baselines' knobs; None: in hindsight, on the evaluated part itself
    cloning: Path | None = None  # artefact of behaviour cloning, to compare with
    budgets: tuple[float, ...] = BUDGETS  # multiples of the artefact's reference cost
    lambdas_per_usd: tuple[float, ...] = ()  # quality per USD; () is LAMBDA_GRID over the reference cost
    num_replicates: int = 500  # bootstrap draws of questions
    seed: int = 0  # of the random policy and the bootstrap

    def __post_init__(self) -> None:
        if not self.budgets or any(not 0 < budget < float("inf") for budget in self.budgets):
            raise ConfigError(f"budgets must be > 0 and finite, got {self.budgets}")
        if any(not 0 <= value < float("inf") for value in self.lambdas_per_usd):
            raise ConfigError(f"lambdas_per_usd must be finite and >= 0, got {self.lambdas_per_usd}")
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")
        if self.num_replicates < 100:
            raise ConfigError(f"num_replicates must be at least 100 for a 95 % interval, got {self.num_replicates}")
