"""Settings of training; importing them needs neither torch nor Ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.storage import Location

Sampling = Literal["uniform", "stratified"]
Searcher = Literal["random", "optuna"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CqlConfig:
    """One discrete-CQL run on given transitions."""

    hidden: tuple[int, ...] = (64, 64)  # widths of the hidden layers of the quality head
    risk_hidden: tuple[int, ...] = (64, 64)  # of the bankruptcy head
    ensemble_size: int = 1  # networks that learn side by side, each to its own target; the policy is their mean
    cql_alpha: float = 0.01  # weight of the conservative term; 0 is double DQN
    td_weight: float = 1.0  # weight of the TD loss; 0 is behaviour cloning
    history_noise: float = 0.1  # deviation of noise on a state's history, against learning sessions by heart
    gamma: float = 1.0  # discount per turn: a session's turns count alike
    lr: float = 1e-3  # of Adam at the start; falls linearly to 0
    batch_size: int = 1024  # transitions a step and learner
    num_steps: int = 4000  # gradient steps
    tau: float = 0.01  # share of the online network in the target network, each step
    # stratified: turns of each difficulty, and bankruptcies, equally often, with weights that undo it in the loss
    sampling: Sampling = "uniform"
    num_learners: int = 0  # remote learners; 0 trains in this process
    num_gpus_per_learner: float = 0  # GPUs of each learner; with 0 learners, of this process
    memory_mb: float = 1024.0  # of transitions, and of turns, kept in memory; what is beyond is read as it is needed
    seed: int = 0  # of weights, of the order of the rows and of noise

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError(f"gamma must be in [0, 1], got {self.gamma}")
        if not 0.0 < self.tau <= 1.0:
            raise ConfigError(f"tau must be in (0, 1], got {self.tau}")
        if self.cql_alpha < 0 or self.td_weight < 0 or self.cql_alpha + self.td_weight == 0:
            raise ConfigError(
                f"cql_alpha and td_weight must be >= 0, one of them > 0, got {self.cql_alpha} and {self.td_weight}"
            )
        for name in ("lr", "batch_size", "num_steps", "memory_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.history_noise < float("inf"):
            raise ConfigError(f"history_noise must be finite and >= 0, got {self.history_noise}")
        if self.num_learners < 0 or self.num_gpus_per_learner < 0:
            raise ConfigError(
                f"num_learners, num_gpus_per_learner must be >= 0, got {self.num_learners}, {self.num_gpus_per_learner}"
            )
        if self.ensemble_size < 1:
            raise ConfigError(f"ensemble_size must be at least 1, got {self.ensemble_size}")
        for name in ("hidden", "risk_hidden"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ConfigError(f"{name} needs at least one width, each >= 1, got {widths}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """From a dataset to a policy artefact. Each field is a flag of `seqroute train`."""

    dataset: Location  # folder or URI written by `seqroute relabel`
    out: Path  # folder of the policy artefact; checkpoints go to OUT.checkpoints, events to OUT.tensorboard
    cql: CqlConfig = field(default_factory=CqlConfig)
    config: Path | None = None  # JSON of what the --cql flags say, such as `seqroute tune` writes; in their place
    # Session Parquet with every model's outcome: its tune part (all where it names no parts) is replayed at every
    # checkpoint, and the best checkpoint becomes the policy. None: the last one does.
    tune_sessions: Path | None = None
    checkpoint_every: int = 1000  # gradient steps
    keep_checkpoints: int = 2  # newest ones, and the best one
    patience: int | None = None  # checkpoints without a better one until training stops; None: it does not stop early
    resume: bool = True  # go on from the newest checkpoint of the same settings and data
    init_from: Path | None = None  # artefact folder: its network is where training starts; None: at random weights

    def __post_init__(self) -> None:
        if self.init_from is not None and self.cql.ensemble_size > 1:
            raise ConfigError(
                f"init_from starts one network, cql.ensemble_size is {self.cql.ensemble_size}: networks that begin "
                "alike stay alike; leave one of the two out"
            )
        for name in ("checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least 1, got {self.patience}; leave it out to train to the end")
        if self.patience is not None and self.tune_sessions is None:
            raise ConfigError(
                f"patience {self.patience} needs a metric to lose patience with: give --tune-sessions, or leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """A search for the settings of training. Each field is a flag of `seqroute tune`."""

    dataset: Location  # folder or URI written by `seqroute relabel`
    tune_sessions: Path  # session Parquet with every model's outcome: its tune part judges the trials
    out: Path  # folder: best.json for `seqroute train --config`, results.parquet, report.html, the trials
    cql: CqlConfig = field(default_factory=CqlConfig)  # what is not searched
    search: tuple[str, ...] = ()  # settings to search, of search_space.SEARCH_SPACE; () is all of them
    num_trials: int = 16  # settings that are tried
    searcher: Searcher = "random"  # optuna: its tree-structured Parzen estimator; needs the extra `optuna`
    max_concurrent: int | None = None  # trials at a time, a CPU each; None: as many as the cluster has room for
    judge_every: int = 500  # gradient steps between looks at the tune part
    grace_steps: int = 1000  # gradient steps that every trial gets
    reduction_factor: int = 3  # of the trials that come as far, one in so many goes on (ASHA)
    seed: int = 0  # of the settings that are drawn
    resume: bool = True  # go on with an unfinished search of the same settings in `out`

    def __post_init__(self) -> None:
        for name in ("num_trials", "judge_every", "grace_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.reduction_factor < 2:
            raise ConfigError(f"reduction_factor must be at least 2, got {self.reduction_factor}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(
                f"max_concurrent must be at least 1, got {self.max_concurrent}; leave it out for all there is room for"
            )
        if self.grace_steps > self.cql.num_steps:
            raise ConfigError(
                f"grace_steps {self.grace_steps} is more than cql.num_steps {self.cql.num_steps}: no trial could be "
                "stopped; lower it"
            )
