"""The paper-size run on the bundled outcomes: from logs to a served policy, every stage as a user would call it."""

import json
import shutil
import socket
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich.table import Table

from seqroute_ray import stages
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ConfigError, SeqRouteError
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.data.sample import DEFAULT_POOL, Part, SampleConfig, write_sample
from seqroute_ray.evaluation.calibrate import CalibrateConfig
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.progress import console
from seqroute_ray.ray_session import ray_session
from seqroute_ray.training.config import CqlConfig, TrainConfig

if TYPE_CHECKING:
    from seqroute_ray.evaluation.evaluate import Kept

Result = dict[str, Any]
PAPER_TRANSITIONS = 2_380_000  # SeqRoute, arXiv:2605.25424: 10,000 sessions to 2.38 M transitions
PAPER_SESSIONS = 10_000
PAPER_STEPS = 1_500  # gradient steps; the paper does not say how many
SERVED_BUDGET = 0.2  # of the served session, as a multiple of the reference cost

# Six turns of the three kinds of task in the bundled outcomes; our own wording.
SERVED_TURNS = (
    "A baker sells 24 rolls in the morning and half as many in the afternoon. How many rolls does she sell in the day?",
    "A train needs 3 hours for 210 km. At the same speed, how many kilometres does it cover in 5 hours?",
    "What does this Python function return for f([3, 1, 2])?\ndef f(a):\n    a.sort()\n    return a[::-1] + [len(a)]",
    "Find the number of ordered pairs (a, b) of positive integers with a + b = 1000 and no digit zero in a or b.",
    "Let z be a complex number with |z| = 1. Find the greatest possible value of |z^3 - 3z + 2|.",
    "Tom has 5 boxes with 12 pencils each and gives away 17 pencils. How many pencils are left?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """The whole way in one command. Each field is a flag of `seqroute quickstart`."""

    out: Path = Path("runs/quickstart")  # made anew
    preset: Literal["recommended", "paper"] = "recommended"  # paper: its setting on real outcomes, see docs/paper.md
    models: tuple[str, ...] = DEFAULT_POOL  # any subset of the bundled models
    num_test_sessions: int = 2_000  # and as many of the tune part, to calibrate
    num_steps: int = 4_000  # gradient steps of CQL; behaviour cloning takes a quarter of them
    max_bankruptcy: float = 0.03  # share of sessions: what the policy is calibrated to keep, where the pool can
    seed: int = 0  # of every stage

    def __post_init__(self) -> None:
        if self.num_test_sessions < 100:
            raise ConfigError(f"num_test_sessions must be at least 100 for intervals, got {self.num_test_sessions}")
        if self.num_steps < 4:
            raise ConfigError(f"num_steps must be at least 4, got {self.num_steps}")


@dataclass(frozen=True)
class Folders:
    """What a quickstart leaves behind; `parent` holds logs and sessions where several runs share them."""

    out: Path
    parent: "Folders | None" = None

    def logs(self, part: Part) -> Path:
        return (self.parent or self).out / f"logs-{part}.parquet"

    def sessions(self, part: Part) -> Path:
        return (self.parent or self).out / f"sessions-{part}.parquet"

    @property
    def dataset(self) -> Path:
        return self.out / "dataset"

    @property
    def policy(self) -> Path:
        return self.out / "policy"

    @property
    def cloning(self) -> Path:
        return self.out / "cloning"


def run_quickstart(config: QuickstartConfig) -> Result:
    """Run all stages. Raises SeqRouteError when fewer transitions than the paper's come out."""
    started = time.monotonic()
    _make_anew(config.out)
    if config.preset == "paper":
        return _run_paper(config)
    folders = Folders(config.out)
    for part, num_sessions, seed in (
        ("fit", PAPER_SESSIONS, config.seed),
        ("tune", config.num_test_sessions, config.seed + 1),
        ("test", config.num_test_sessions, config.seed + 2),
    ):
        sample_and_import(config, folders, part, num_sessions, seed)  # type: ignore[arg-type]  # mypy widens the literal
    with ray_session():
        relabeled = learn(config, folders)
    evaluated, report = judge(config, folders)
    turns = serve_one_session(config, report["header"]["reference_cost_usd"] * SERVED_BUDGET)
    console.print(results_table(report))
    console.print(turns_table(turns))
    console.print(f"Report: {evaluated['report_html']}")
    return {
        **{name: relabeled[name] for name in ("num_sessions", "num_transitions", "runner", "num_workers")},
        "policy_dir": str(folders.policy),
        "report_json": evaluated["report_json"],
        "report_html": evaluated["report_html"],
        "served_turns": turns,
        "wall_s": round(time.monotonic() - started, 1),
    }


def _run_paper(config: QuickstartConfig) -> Result:
    from seqroute_ray.paper import run_paper

    with ray_session():
        return run_paper(config.out, PAPER_SESSIONS, PAPER_STEPS, config.seed)


def sample_and_import(config: QuickstartConfig, folders: Folders, part: Part, num_sessions: int, seed: int) -> None:
    """Logs of one part, as a team would have them, and the session file made of them."""
    console.print(f"sample and import {num_sessions} sessions of part {part}")
    sample = SampleConfig(num_sessions=num_sessions, models=config.models, part=part, with_outcomes=True, seed=seed)
    write_sample(sample, folders.logs(part))
    import_logs(
        ImportConfig(logs=(folders.logs(part),), out=folders.sessions(part), models=config.models, runner="local")
    )


def learn(config: QuickstartConfig, folders: Folders) -> Result:
    """Relabel, train CQL (and behaviour cloning to compare with), calibrate. Returns the relabeling's result."""
    hbr = HbrConfig(paths="sampled", seed=config.seed)
    relabeled = stages.relabel(RelabelConfig(sessions=folders.sessions("fit"), out=folders.dataset, hbr=hbr))
    if relabeled["num_transitions"] < PAPER_TRANSITIONS:
        raise SeqRouteError(
            f"{relabeled['num_transitions']} transitions, the paper-size run needs {PAPER_TRANSITIONS}: sessions of "
            "this pool go bankrupt too often; choose --models with a cheap one among them"
        )
    cql = CqlConfig(num_steps=config.num_steps, seed=config.seed)
    cloning = replace(cql, td_weight=0.0, cql_alpha=1.0, num_steps=config.num_steps // 4)
    stages.train(TrainConfig(dataset=folders.dataset, out=folders.policy, cql=cql))
    stages.train(TrainConfig(dataset=folders.dataset, out=folders.cloning, cql=cloning))
    stages.calibrate(
        CalibrateConfig(policy=folders.policy, sessions=folders.sessions("tune"), max_bankruptcy=config.max_bankruptcy)
    )
    return relabeled


def judge(config: QuickstartConfig, folders: Folders, kept: "Kept | None" = None) -> tuple[Result, Result]:
    """Evaluate on the test part; returns the stage's result and the report. kept: see evaluation.evaluate."""
    evaluated = stages.evaluate(
        EvaluateConfig(
            policy=folders.policy,
            cloning=folders.cloning,
            sessions=folders.sessions("test"),
            fit_sessions=folders.sessions("fit"),
            tune_sessions=folders.sessions("tune"),
            out=config.out,
            seed=config.seed,
        ),
        kept,
    )
    return evaluated, json.loads(Path(evaluated["report_json"]).read_text())


def _make_anew(out: Path) -> None:
    """An empty folder; refuses to delete what a quickstart did not write."""
    if out.exists():
        if not (out / "logs-fit.parquet").exists() and any(out.iterdir()):
            raise ConfigError(f"{out} holds files that no quickstart wrote; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)


def serve_one_session(config: QuickstartConfig, budget_usd: float) -> list[Result]:
    """Six turns over real HTTP against the replay upstream: model, cost and remaining budget of each."""
    from seqroute_ray.serving.replay_upstream import running_replay_upstream
    from seqroute_ray.serving.serve import ServeConfig, running_server

    turns = []
    with running_replay_upstream() as upstream_url:
        serving = config.out / "serving.yaml"
        serving.write_text(yaml.safe_dump(serving_settings(config, upstream_url)))
        with running_server(ServeConfig(config=serving, port=_free_port())) as base_url:
            for text in SERVED_TURNS:
                answer = _ask(f"{base_url}/v1/chat/completions", text, budget_usd)
                turns.append(answer["seqroute"])
    names = ("turn", "cost_usd", "spent_usd", "remaining_usd")
    return [{"model": turn["decision"]["model"], **{name: turn[name] for name in names}} for turn in turns]


def serving_settings(config: QuickstartConfig, upstream_url: str) -> Result:
    """The settings file of the served session."""
    manifest = json.loads((config.out / "policy" / "manifest.json").read_text())
    prices = ("usd_per_m_input", "usd_per_m_output")
    return {
        "policy": {"artefact": str(config.out / "policy")},
        "ledger": str(config.out / "ledger.sqlite"),
        "upstreams": [
            {"model": model.name, "base_url": upstream_url, **{name: getattr(model, name) for name in prices}}
            for model in Catalog.from_json(manifest["catalog"]).models
        ],
    }


def _free_port() -> int:
    """A loopback port that nobody listens on: 8000 is often taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(url: str, text: str, budget_usd: float) -> Result:
    body = json.dumps({"model": "seqroute", "messages": [{"role": "user", "content": text}]}).encode()
    headers = {
        "content-type": "application/json",
        "x-session-id": "quickstart",
        "x-session-budget-usd": f"{budget_usd:.9f}",
    }
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - our own loopback server
    with urllib.request.urlopen(request, timeout=60) as response:  # nosec B310  # noqa: S310
        answer: Result = json.load(response)
    return answer


def results_table(report: Result) -> Table:
    """Quality and bankruptcies by policy and budget; CQL at lambda 0."""
    header = report["header"]
    table = Table(title="Quality a turn / bankrupt sessions, by budget (multiples of the reference cost)")
    table.add_column("policy")
    for multiple in header["budgets"]:
        table.add_column(f"{multiple:g}x", justify="right")
    cells: dict[str, list[str]] = {}
    for row in report["rows"]:
        if not row["lambda_per_usd"]:
            cells.setdefault(row["policy"], []).append(f"{row['quality']:.3f} / {100 * row['bankruptcy_rate']:.1f} %")
    for policy, values in cells.items():
        table.add_row(policy, *values, style="bold" if policy == "cql" else "")
    return table


def turns_table(turns: list[Result]) -> Table:
    """The served session, turn by turn."""
    table = Table(title="One session served over HTTP")
    for name in ("turn", "model", "cost, $", "remaining, $"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for turn in turns:
        table.add_row(str(turn["turn"]), turn["model"], f"{turn['cost_usd']:.6f}", f"{turn['remaining_usd']:.6f}")
    return table
