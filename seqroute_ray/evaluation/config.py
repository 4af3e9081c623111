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

MIN_ESS = 50.0  # see evaluation.ope


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeConfig:
    """Off-policy evaluation of one policy on one log. Each field is a flag of `seqroute ope`."""

    policy: Path  # artefact folder
    sessions: Path  # session Parquet with propensities; of sessions that the policy did not learn from
    budget_usd: float | None = None  # of every session; logs do not hold budgets. This or `budget`
    budget: float | None = None  # the same, as a multiple of the artefact's reference cost
    lambda_per_usd: float = 0.0  # quality per USD: the policy's price of money
    epsilon: float = 0.0  # share of turns on which the evaluated policy takes any affordable model, as a server does
    per: Literal["turn", "session"] = "turn"  # what the quality is the mean of; unserved turns count 0
    follows_forced: bool = False  # a turn of propensity 1 had no choice (pinned, tool call): the policy has none either
    min_ess: float = MIN_ESS  # effective sample size below which nothing is concluded
    out: Path | None = None  # JSON file of the report

    def __post_init__(self) -> None:
        if (self.budget_usd is None) == (self.budget is None):
            raise ConfigError("give the session's budget either as budget_usd or as budget (of the reference cost)")
        for name in ("budget_usd", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be > 0 and finite, got {value}")
        if not 0 <= self.lambda_per_usd < float("inf"):
            raise ConfigError(f"lambda_per_usd must be finite and >= 0, got {self.lambda_per_usd}")
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon must be in [0, 1], got {self.epsilon}")
        if not self.min_ess >= 2:
            raise ConfigError(f"min_ess must be at least 2, the fewest that have a variance, got {self.min_ess}")
