"""Settings of a retraining: where logs come from, how a policy is made of them, and what it must not be worse in."""

from dataclasses import dataclass, field
from pathlib import Path

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.storage import Location
from seqroute_ray.data.runners import RunnerName
from seqroute_ray.training.config import CqlConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What a new policy must not be worse in than the current one, on sessions that neither has learned from."""

    budgets: tuple[float, ...] = (0.1, 0.35, 1.0)  # equal for both: multiples of the current policy's reference cost
    max_quality_loss: float = 0.02  # of a turn: the 95 % interval of the difference must lie above minus it
    max_bankruptcy_rise: float = 0.05  # share of sessions: the interval of the difference must lie below it
    max_cost_rise: float = 0.5  # of a turn, as a share of the current cost: the interval must lie below it
    min_sessions: int = 100  # in the holdout
    min_ess: float = 50.0  # effective sample size below which nothing is concluded from a log without outcomes
    num_replicates: int = 500  # bootstrap draws

    def __post_init__(self) -> None:
        if not self.budgets or any(not 0 < budget < float("inf") for budget in self.budgets):
            raise ConfigError(f"gate.budgets must be > 0 and finite, got {self.budgets}")
        for name in ("max_quality_loss", "max_bankruptcy_rise", "max_cost_rise"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"gate.{name} must be > 0: no interval has no width, got {getattr(self, name)}")
        if self.min_sessions < 2 or self.min_ess < 2:
            raise ConfigError(
                f"gate.min_sessions, gate.min_ess must be at least 2, got {self.min_sessions}, {self.min_ess}"
            )
        if self.num_replicates < 100:
            raise ConfigError(f"gate.num_replicates must be at least 100, got {self.num_replicates}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """How a new policy is tried on real sessions, and what it is watched for."""

    share: float = 0.1  # of the sessions
    min_sessions: int = 100  # on each side, before anything is decided
    max_sessions: int = 20_000  # of the canary: where it is still unclear then, it ends
    max_quality_loss: float = 0.05  # mean feedback of a turn
    max_error_rise: float = 0.02  # share of turns that did not finish or needed another attempt
    max_cost_rise: float = 0.5  # of a turn, as a share of the current cost

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"canary.share must be in (0, 1), got {self.share}")
        if not 2 <= self.min_sessions <= self.max_sessions:
            raise ConfigError(
                f"canary needs 2 <= min_sessions <= max_sessions, got {self.min_sessions} and {self.max_sessions}"
            )
        for name in ("max_quality_loss", "max_error_rise", "max_cost_rise"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"canary.{name} must be > 0: no interval has no width, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """From served decisions to a better policy. Each field is a flag of `seqroute retrain`."""

    registry: str  # folder or URI; its current version is the one to beat, and where training starts
    out: Path  # folder of state, data and reports, on a disk that every invocation sees; it stays from round to round
    ledger: str | None = None  # decision log: path of the SQLite file, or redis://HOST:PORT/DB
    redis_password_env: str | None = None  # environment variable that holds Redis' password
    logs: tuple[Location, ...] = ()  # files of the log schema: in place of a ledger, or beside it (shadow calls)
    base: Location | None = None  # session file that the first version learned from; the first round starts from it
    judgements: Location | None = None  # as of `seqroute import`
    catalog: Path | None = None  # JSON or YAML list of models and prices; None: the current version's
    # No training: the current policy with this model of the catalog, by its metadata and what the sessions hold of it.
    add_model: str | None = None
    remove_model: str | None = None  # no training: the current policy without this model
    candidate: Path | None = None  # no training: this artefact
    warm_start: bool = True  # training starts from the current version's network where the shapes agree
    test_share: float = 0.2  # of the sessions, by a hash: never learned from
    max_bad_share: float = 0.01  # of the new rows, see `seqroute import`
    hbr: HbrConfig = field(default_factory=HbrConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    cql: CqlConfig = field(default_factory=CqlConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    force: bool = False  # try a policy that the gate refused, too
    runner: RunnerName = "ray"  # of import and relabeling; training is on Ray always
    dry_run: bool = False  # say what would be done, and do nothing

    def __post_init__(self) -> None:
        if self.ledger is None and not self.logs:
            raise ConfigError("give a ledger (the decision log) or logs: there is nothing to learn from")
        if not 0 < self.test_share < 1:
            raise ConfigError(f"test_share must be in (0, 1), got {self.test_share}")
        made = [name for name in ("add_model", "remove_model", "candidate") if getattr(self, name) is not None]
        if len(made) > 1:
            raise ConfigError(f"{' and '.join(made)} are given: a round makes one policy; leave the others out")
        if self.add_model is not None and self.catalog is None:
            raise ConfigError(f"add_model {self.add_model!r} needs --catalog, which has its prices")
