"""The Ray stages as commands and jobs run them: Ray around, a progress bar, a result that fits one JSON line."""

import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqroute_ray.core.dataset import MANIFEST, read_header
from seqroute_ray.core.sessions import open_sessions
from seqroute_ray.core.storage import Location
from seqroute_ray.data.importer import ImportConfig, check, import_logs
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from seqroute_ray.data.tries import Done
from seqroute_ray.evaluation.calibrate import CalibrateConfig
from seqroute_ray.evaluation.config import EvaluateConfig, OpeConfig
from seqroute_ray.progress import Update, bar, console
from seqroute_ray.ray_session import ray_session
from seqroute_ray.shared_paths import check_shared
from seqroute_ray.training.config import CqlConfig, TrainConfig, TuneConfig
from seqroute_ray.training.cql_file import with_file
from seqroute_ray.training.search_space import SEARCH_SPACE, Interval
from seqroute_ray.trial_table import TrialTable

if TYPE_CHECKING:  # evaluating loads much that other stages do not need
    from seqroute_ray.evaluation.evaluate import Kept
    from seqroute_ray.evaluation.tune_part import TunePart

Result = dict[str, Any]


def import_(config: ImportConfig) -> Result:
    """Import on Ray Data or in this process; see ImportReport for the fields."""
    check(config)  # before Ray, whose start takes its time
    with ray_session() if config.runner == "ray" else nullcontext(), ExitStack() as bars:
        if config.runner == "ray":
            judgements = [] if config.judgements is None else [config.judgements]
            check_shared([*config.logs, *judgements], [config.out])
        shown: dict[str, Update] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in shown:
                bars.close()
                shown[what] = bars.enter_context(bar(f"import, {what}"))
            shown[what](done, total, "")

        return asdict(import_logs(config, show))


def relabel(config: RelabelConfig) -> Result:
    """Relabel on Ray Data or in this process; see RelabelReport for the fields."""
    with open_sessions(config.sessions):
        pass  # it is there: asked before Ray, whose start takes its time
    with ray_session() if config.runner == "ray" else nullcontext(), bar("relabel, shards") as update:
        if config.runner == "ray":
            check_shared([config.sessions], [config.out])
        started = time.monotonic()

        def show(done: Done) -> None:
            per_s = 1 / max(time.monotonic() - started, 1e-3)
            note = f"{done.sessions * per_s:,.0f} sessions/s, {done.transitions * per_s:,.0f} transitions/s"
            update(done.shards, done.num_shards, note)

        return asdict(relabel_sessions(config, show))


def train(config: TrainConfig) -> Result:
    """Train on RLlib and write the artefact."""
    from seqroute_ray.training import train as training
    from seqroute_ray.training.event_files import EventFiles

    config = with_file(config)
    title = "train, steps" if config.cql.td_weight else "train (behaviour cloning), steps"
    evaluate = None if config.tune_sessions is None else tune_part(config.dataset, config.tune_sessions)
    events_dir = training.events_dir(config)
    with ray_session(), EventFiles(events_dir) as events, bar(title) as update:
        if config.cql.num_learners:  # else this process alone reads the data
            check_shared([_manifest(config.dataset)], needs=_needs(config.cql))

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            events.write(done, figures)
            update(done, total, " ".join(f"{k}={v:.4f}" for k, v in figures.items()))

        trained = training.train(config, show, evaluate)
    return {
        "policy_dir": str(config.out),
        "policy_version": trained.artefact.version,
        "num_steps": trained.num_steps,
        "checkpoints_dir": str(trained.checkpoints.folder),
        "tensorboard_dir": str(events_dir.parent),
        **trained.metrics,
    }


def tune(config: TuneConfig) -> Result:
    """Search for settings on the tune part; writes best.json, results.parquet and report.html."""
    from seqroute_ray.evaluation.tune_report import write_tune_report
    from seqroute_ray.training import tune as tuning
    from seqroute_ray.training.train import METRIC

    evaluate = tune_part(config.dataset, config.tune_sessions)
    with ray_session(), TrialTable(config.num_trials) as table:
        check_shared([_manifest(config.dataset), config.tune_sessions], [config.out], _needs(config.cql))
        tuned = tuning.tune(config, evaluate, table.show)
    logarithmic = [name for name, domain in SEARCH_SPACE.items() if isinstance(domain, Interval) and domain.log]
    write_tune_report(config.out / tuning.RESULTS, METRIC, config.out / "report.html", logarithmic)
    return {
        "best_json": str(config.out / tuning.BEST),
        "results_parquet": str(config.out / tuning.RESULTS),
        "report_html": str(config.out / "report.html"),
        METRIC: tuned.metric,
        "num_trials": tuned.num_trials,
        "num_errors": tuned.num_errors,
    }


def _manifest(dataset: Location) -> str:
    """A file of the dataset that tells it from others."""
    return f"{str(dataset).rstrip('/')}/{MANIFEST}"


def _needs(cql: CqlConfig) -> dict[str, float]:
    """Resources of a node that may get learners or trials."""
    return {"GPU": cql.num_gpus_per_learner} if cql.num_gpus_per_learner else {"CPU": 1}


def tune_part(dataset: Location, sessions: Path) -> "TunePart":
    """What judges a network in training. Raises DataError when the sessions do not fit the dataset."""
    from seqroute_ray.evaluation.tune_part import TunePart

    header = read_header(dataset)
    penalty = header.bankruptcy_penalty
    part = TunePart(sessions.absolute(), header.catalog, header.estimator, header.layout, penalty)
    part.data  # noqa: B018 - sessions that cannot be replayed are an error before the training
    return part


def calibrate(config: CalibrateConfig) -> Result:
    """Choose the bankruptcy penalty by budget on the tune part."""
    from seqroute_ray.evaluation import calibrate as calibration

    risk = calibration.calibrate(config)
    prices = ", ".join(f"{b:g}x: {p:g}" for b, p in zip(risk.budgets, risk.penalties, strict=True))
    console.print(f"calibrate: bankruptcy penalty by budget {prices}")
    return {"policy_dir": str(config.policy), **asdict(risk)}


def evaluate(config: EvaluateConfig, kept: "Kept | None" = None) -> Result:
    """Replay and write the reports; kept: see evaluation.evaluate."""
    from seqroute_ray.evaluation import evaluate as evaluation

    with bar("evaluate, replays") as update:
        report = evaluation.evaluate(config, lambda done, total: update(done, total, ""), kept)
    return {
        "report_json": str(config.out / "report.json"),
        "report_html": str(config.out / "report.html"),
        "num_rows": len(report["rows"]),
    }


def ope(config: OpeConfig) -> Result:
    """Estimate what a policy would have earned from a log of another one, or say why the log cannot tell."""
    from seqroute_ray.evaluation.ope_report import evaluate_ope

    report = evaluate_ope(config)
    for answer in report["answers"]:
        low, high = answer.get("interval", (0.0, 0.0))
        said = f"{answer['value']:.4f} ({low:.4f} to {high:.4f})" if answer["concluded"] else f"no: {answer['why']}"
        console.print(f"ope, {answer['estimator']}: {said}")
    return report
