"""A capacity model: from what was measured on one core to fleets of replicas, ledger shards and hours of retraining.

    python benchmarks/scale.py [--check docs/scale.md]

Every figure below names the script that measured it; everything else is arithmetic, and an extrapolation: nothing here
ran on more than one machine. Tables on stderr, one JSON line on stdout; `--check` compares the tables with a page.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tyro
from _tables import markdown, show

S_PER_DAY = 86_400
MEAN_POLL = 0.75  # of the reaper's interval: it waits for half of it to all of it


def measured(value: float, what: str, source: str) -> Any:
    return field(default=value, metadata={"what": what, "source": source})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Measured on 2 cores of one machine (x86_64, Python 3.11.7, Redis 7.0.15)."""

    uvicorn_ms: float = measured(1.71, "CPU of a request, uvicorn and SQLite, ms", "serve.py")
    serve_ms: float = measured(3.51, "CPU of a request, Serve and HAProxy together, ms", "serve.py")
    proxy_ms: float = measured(0.6, "of that HAProxy, ms", "a probe before the project, no script")
    decision_ms: float = measured(0.38, "of that encoding, estimates and policy, ms", "serve.py")
    replica_mib: float = measured(307, "memory of a replica on Serve, MiB", "soak.py")
    redis_us: float = measured(
        230, "CPU of Redis a turn: read, reserve, settle; many connections, us", "ledger_shard.py"
    )
    month_us: float = measured(115, "the same for a key's month, which has no turns, us", "ledger_shard.py")
    redis_session_bytes: float = measured(580, "Redis' memory a session without turns, bytes", "ledger_shard.py")
    redis_turn_bytes: float = measured(3_270, "Redis' memory a turn, bytes", "ledger_shard.py")
    redis_file_bytes: float = measured(4_377, "append-only file a turn, bytes", "ledger_shard.py")
    redis_load_s: float = measured(35, "restart of Redis, CPU a million turns, s", "ledger_shard.py")
    month_read_us: float = measured(1.3, "Redis held up by an audit of a month, us an attempt", "ledger_shard.py")
    sqlite_turns_per_s: float = measured(1_000, "turns a second on one SQLite file", "ledger_shard.py")
    sqlite_turn_bytes: float = measured(2_673, "SQLite's file a turn, bytes", "ledger_shard.py")
    export_per_s: float = measured(7_000, "turns exported from Redis a CPU second of one process", "ledger_shard.py")
    import_per_cpu_s: float = measured(26_000, "turns of the ledger's export imported a CPU second", "ledger_shard.py")
    text_import_per_cpu_s: float = measured(2_365, "turns with texts imported a CPU second", "import_logs.py")
    import_on_ray: float = measured(1.35, "CPU of an import on Ray over one process", "import_logs.py")
    relabel_us: float = measured(13.9, "CPU of relabeling a turn, 34 transitions each, us", "relabel.py")
    relabel_on_ray: float = measured(1.5, "CPU of relabeling on Ray over one process", "relabel.py")
    transitions_a_turn: float = measured(33.9, "transitions a turn: 8 sampled paths, 7 budgets", "relabel.py")
    transition_bytes: float = measured(5.6, "a transition on disk, bytes", "relabel.py")
    row_bytes: float = measured(34, "a transition in the learner's row file, bytes", "docs/training.md")
    transitions_per_s: float = measured(104_880, "transitions a second through training, one core", "train.py")
    hottest_shard: float = measured(1.22, "load of the hottest of 64 shards over the mean, simulated", "sharding.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Chosen, not measured."""

    replica_busy: float = 0.6  # of a core, at the peak: latency rises steeply beyond
    redis_busy: float = 0.6  # of the hottest shard's core, at the peak; see the table of waits
    node_cores: int = 16
    provider_s: float = 5.0  # of a whole answer: so long a request is in flight
    turns_a_session: float = 2.9  # mean of the bundled chat trace
    embedding_bytes: int = 512  # 256 numbers, float16
    default_draws: int = 4_000 * 1_024  # transitions that the default training draws: steps x batch
    reaper_interval_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked for."""

    requests_per_s: float
    logged_turns: float
    live_sessions: float


DEMANDS = tuple(
    Demand(requests_per_s=10.0**n, logged_turns=10.0 ** (n + 4), live_sessions=10.0 ** (n + 1)) for n in (2, 3, 4, 5)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The arithmetic."""

    demand: Demand
    figures: Figures = Figures()
    given: Assumptions = Assumptions()

    # serving

    def replicas(self) -> int:
        """One core each: a replica is one Python process."""
        cpu_s = (self.figures.serve_ms - self.figures.proxy_ms) / 1e3
        return math.ceil(self.demand.requests_per_s * cpu_s / self.given.replica_busy)

    def requests_per_replica(self) -> float:
        return self.demand.requests_per_s / self.replicas()

    def in_flight_per_replica(self) -> float:
        return self.requests_per_replica() * self.given.provider_s

    def proxy_nodes(self) -> int:
        cores = self.demand.requests_per_s * self.figures.proxy_ms / 1e3 / self.given.replica_busy
        return math.ceil(cores / self.given.node_cores)

    def replica_gib(self) -> float:
        return self.replicas() * self.figures.replica_mib / 1024

    # the ledger

    def shards(self, *, months: bool = False) -> int:
        """Redis processes, one core each, so that the hottest one is as busy as `redis_busy`."""
        cpu_us = self.figures.redis_us + (self.figures.month_us if months else 0)
        busy_cores = self.demand.requests_per_s * cpu_us / 1e6 * self.figures.hottest_shard
        return math.ceil(busy_cores / self.given.redis_busy)

    def connections_per_shard(self) -> int:
        return 2 * self.replicas()  # of up to 16; most commands share two

    def reaper_commands_per_shard_per_s(self) -> float:
        return self.replicas() / (self.given.reaper_interval_s * MEAN_POLL)

    def live_gib(self) -> float:
        """Redis' memory if only live sessions were kept, half of their turns done."""
        turns = self.demand.live_sessions * self.given.turns_a_session / 2
        return (
            self.demand.live_sessions * self.figures.redis_session_bytes + turns * self.figures.redis_turn_bytes
        ) / 2**30

    def ledger_tib_a_day(self) -> float:
        """What Redis grows by at the peak rate: nothing is ever deleted."""
        turns = self.demand.requests_per_s * S_PER_DAY
        sessions = turns / self.given.turns_a_session
        return (turns * self.figures.redis_turn_bytes + sessions * self.figures.redis_session_bytes) / 2**40

    def hours_until_64_gib_a_shard(self) -> float:
        return self.shards() * 64 / (self.ledger_tib_a_day() * 1024) * 24

    def file_mb_per_s_per_shard(self) -> float:
        return self.demand.requests_per_s / self.shards() * self.figures.redis_file_bytes / 1e6

    # retraining

    def export_hours(self) -> float:
        """By one process for each shard."""
        return self.demand.logged_turns / self.figures.export_per_s / self.shards() / 3600

    def import_core_hours(self) -> float:
        return self.demand.logged_turns / self.figures.import_per_cpu_s * self.figures.import_on_ray / 3600

    def text_import_core_hours(self) -> float:
        return self.demand.logged_turns / self.figures.text_import_per_cpu_s * self.figures.import_on_ray / 3600

    def relabel_core_hours(self) -> float:
        return self.demand.logged_turns * self.figures.relabel_us / 1e6 * self.figures.relabel_on_ray / 3600

    def transitions(self) -> float:
        return self.demand.logged_turns * self.figures.transitions_a_turn

    def dataset_gib(self) -> float:
        return (
            self.transitions() * self.figures.transition_bytes + self.demand.logged_turns * self.given.embedding_bytes
        ) / 2**30

    def embeddings_gib(self) -> float:
        return self.demand.logged_turns * self.given.embedding_bytes / 2**30

    def row_file_gib(self) -> float:
        """On the local disk of every node with a learner."""
        return self.transitions() * self.figures.row_bytes / 2**30

    def epoch_core_hours(self) -> float:
        return self.transitions() / self.figures.transitions_per_s / 3600

    def default_training_core_hours(self) -> float:
        """However long the logs are."""
        return self.given.default_draws / self.figures.transitions_per_s / 3600

    # what bounds a single thing

    def one_redis_requests_per_s(self) -> float:
        return self.given.redis_busy / (self.figures.redis_us / 1e6)

    def month_requests_per_s(self) -> float:
        """Of one API key with a monthly budget: its account is on one shard, which does nothing else."""
        return self.given.redis_busy / (self.figures.month_us / 1e6)


ROWS: tuple[tuple[str, str, Callable[[Model], float]], ...] = (
    ("requests a second", "{:,.0f}", lambda m: m.demand.requests_per_s),
    ("live sessions", "{:,.0f}", lambda m: m.demand.live_sessions),
    ("replicas, a core each", "{:,.0f}", Model.replicas),
    ("requests in flight a replica", "{:,.0f}", Model.in_flight_per_replica),
    ("memory of the replicas, GiB", "{:,.0f}", Model.replica_gib),
    ("HAProxy nodes of 16 cores", "{:,.0f}", Model.proxy_nodes),
    ("ledger shards", "{:,.0f}", Model.shards),
    ("ledger shards, every key with a monthly budget", "{:,.0f}", lambda m: m.shards(months=True)),
    ("connections to a shard", "{:,.0f}", Model.connections_per_shard),
    ("reapers' looks at a shard a second", "{:,.0f}", Model.reaper_commands_per_shard_per_s),
    ("append-only file of a shard, MB/s", "{:,.1f}", Model.file_mb_per_s_per_shard),
    ("Redis' memory for live sessions alone, GiB", "{:,.1f}", Model.live_gib),
    ("Redis' memory that a day adds, TiB", "{:,.2f}", Model.ledger_tib_a_day),
    ("hours until shards of 64 GiB are full", "{:,.1f}", Model.hours_until_64_gib_a_shard),
)
RETRAINING_ROWS: tuple[tuple[str, str, Callable[[Model], float]], ...] = (
    ("logged turns", "{:,.0f}", lambda m: m.demand.logged_turns),
    ("export, one process a shard, hours", "{:,.1f}", Model.export_hours),
    ("import of exports, core hours", "{:,.1f}", Model.import_core_hours),
    ("import of texts, core hours", "{:,.1f}", Model.text_import_core_hours),
    ("relabel, core hours", "{:,.2f}", Model.relabel_core_hours),
    ("transitions", "{:,.0f}", Model.transitions),
    ("dataset, GiB", "{:,.1f}", Model.dataset_gib),
    ("of that embeddings, GiB", "{:,.1f}", Model.embeddings_gib),
    ("learner's row file, GiB", "{:,.1f}", Model.row_file_gib),
    ("training on every transition once, core hours", "{:,.2f}", Model.epoch_core_hours),
    ("training with the default 4,000 steps, core hours", "{:,.2f}", Model.default_training_core_hours),
)


def figures_table(figures: Figures) -> str:
    rows = [
        [entry.metadata["what"], f"{getattr(figures, entry.name):,g}", entry.metadata["source"]]
        for entry in fields(figures)
    ]
    return markdown(["figure", "value", "measured by"], rows)


def capacity_table(rows: tuple[tuple[str, str, Callable[[Model], float]], ...]) -> str:
    (title, form, first), *others = rows
    models = [Model(demand=demand) for demand in DEMANDS]
    header = [title, *(form.format(first(model)) for model in models)]
    return markdown(header, [[name, *(form.format(of(model)) for model in models)] for name, form, of in others])


def tables() -> dict[str, str]:
    return {
        "figures": figures_table(Figures()),
        "serving": capacity_table(ROWS),
        "retraining": capacity_table(RETRAINING_ROWS),
    }


@dataclass(frozen=True, kw_only=True)
class Settings:
    check: Path | None = None  # a page that must have these tables


def main(settings: Settings) -> None:
    show(tables(), settings.check)
    largest = Model(demand=DEMANDS[-1])
    print(
        json.dumps(
            {
                "capacity": {name: of(largest) for name, _, of in (*ROWS, *RETRAINING_ROWS)},
                "month_requests_per_s": largest.month_requests_per_s(),
                "one_redis_requests_per_s": largest.one_redis_requests_per_s(),
                "figures": asdict(largest.figures),
                "assumptions": asdict(largest.given),
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
