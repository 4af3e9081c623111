"""A round of retraining: export, import, candidate, judge, gate, register, canary; later looks watch it to its end.

Each step leaves its result in the state file before the next one begins, and may be killed at any moment: the next
invocation does the step that was cut off again, and those steps go on where they were or find their work done. One
invocation at a time works in a folder.
"""

import logging
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from seqroute_ray.core.errors import ConfigError, DataError, SeqRouteError
from seqroute_ray.core.locks import only_one
from seqroute_ray.core.registry import Registry, hash_of
from seqroute_ray.core.storage import Folder
from seqroute_ray.retraining.candidate import make_candidate, pool_of, save_current
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.retraining.report import to_markdown
from seqroute_ray.retraining.sessions import catalog_file, export, holdout, import_new, join, key_of, num_changed
from seqroute_ray.retraining.state import LOCK, Round, State, Step

logger = logging.getLogger(__name__)
STEPS = ("export", "import", "candidate", "judge", "gate", "register", "canary", "watch")
SESSIONS, NEW, POLICY, CURRENT, REPORT = "sessions.parquet", "new.parquet", "policy", "current", "report.md"
OUTCOME_OF = {"promote": "promoted", "roll_back": "rolled_back", "wait": ""}
Result = dict[str, Any]


class GateError(SeqRouteError):
    """A policy that may not be tried."""


def retrain(config: RetrainConfig) -> Result:
    """Go on with the round that is under way, or begin one. Raises GateError on a policy that the gate refused."""
    if config.dry_run:
        return plan(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop like Ctrl-C: the step that runs is cut off
    with only_one(config.out / LOCK, wait=False):
        state = State.load(config.out)
        current = due(config, state)
        if current is None:
            return told(config, state.rounds[-1])
        state.with_last(current).save(config.out)
        for name in to_do(current):
            logger.info("event=step round=%d step=%s", current.number, name)
            current = advanced(current, name, _run(name, config, current), config.force)
            state.with_last(current).save(config.out)
            if current.outcome or name == "canary":  # the canary is watched by later invocations
                break
        return told(config, current)


def due(config: RetrainConfig, state: State) -> Round | None:
    """The round to work on; None where the last one has the answer already."""
    last, key = state.last, key_of(config)
    if last is None:
        return Round(number=1, key=key, since=0, sessions=str(config.base or ""))
    if not last.outcome and (last.key == key or "canary" in last.steps):
        return last
    if last.outcome == "refused" and last.key == key and config.force:
        return replace(last, outcome="")
    if last.outcome and last.key == key:
        since = int(last.steps["export"]["watermark"])
        return following(config, last, key, since) if num_changed(config, since) else None
    return following(config, last, key, last.since)  # other settings: on the same data, and what has come since


def following(config: RetrainConfig, last: Round, key: str, since: int) -> Round:
    """It begins with all sessions of the last one, as far as that came."""
    sessions = str(folder_of(config, last) / SESSIONS) if "import" in last.steps else last.sessions
    return Round(number=last.number + 1, key=key, since=since, sessions=sessions)


def to_do(current: Round) -> list[str]:
    """Steps that have no result yet; a look at the canary that said wait is no result."""
    done = [name for name in current.steps if current.steps[name].get("word") != "wait"]
    return [name for name in STEPS if name not in done]


def advanced(current: Round, name: str, result: Step, force: bool) -> Round:
    """With a step's result, and the outcome where it decides."""
    current = current.with_step(name, result)
    if name == "gate" and not result["passed"] and not force:
        return replace(current, outcome="refused")
    if name == "watch":
        return replace(current, outcome=OUTCOME_OF[result["word"]])
    return current


def told(config: RetrainConfig, current: Round) -> Result:
    """Writes the report; the result of an invocation. Raises GateError."""
    report = folder_of(config, current) / REPORT
    Folder.at(report.parent).write(REPORT, to_markdown(current).encode())
    if current.outcome == "refused":
        failed = [f"{c['name']}: {c['why']}" for c in current.steps["gate"]["checks"] if not c["passed"]]
        raise GateError(f"round {current.number}: the gate refused the new policy ({'; '.join(failed)}); see {report}")
    watch = current.steps.get("watch", {})
    return {
        "round": current.number,
        "outcome": current.outcome or "on trial",
        "version": current.steps["register"]["version"],
        "why": watch.get("why", "it passed the gate" if current.steps["gate"]["passed"] else "forced"),
        "report": str(report),
    }


def plan(config: RetrainConfig) -> Result:
    """What an invocation would do now; writes nothing."""
    state = State.load(config.out)
    current, pointers = due(config, state), Registry(config.registry).pointers()
    if current is None:
        last = state.rounds[-1]
        return {"round": last.number, "outcome": last.outcome, "to_do": [], "why": "no session changed since"}
    return {
        "round": current.number,
        "current": pointers.current,
        "done": list(current.steps),
        "to_do": to_do(current),
        "num_changed_sessions": num_changed(config, current.since),
        "sessions_before": current.sessions or None,
    }


def folder_of(config: RetrainConfig, current: Round) -> Path:
    return config.out / f"round-{current.number:04d}"


def _run(name: str, config: RetrainConfig, current: Round) -> Step:
    """One step; it may find its work done, wholly or in part, by an invocation that was killed."""
    folder = folder_of(config, current)
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], Step]] = {
        "export": partial(_export, config, current, folder),
        "import": partial(_import, config, current, folder),
        "candidate": partial(make_candidate, config, folder / SESSIONS, folder / CURRENT, folder / POLICY),
        "judge": partial(_judge, config, folder),
        "gate": partial(_gate, config, current, folder),
        "register": partial(_register, config, current, folder),
        "canary": partial(_canary, config, current),
        "watch": partial(_watch, config, current),
    }
    return steps[name]()


def _export(config: RetrainConfig, current: Round, folder: Path) -> Step:
    registry = Registry(config.registry)
    version = registry.pointers().current
    if not version:
        raise ConfigError(
            f"registry {config.registry}: no version is current; `seqroute registry add --promote` makes a first one so"
        )
    save_current(registry, version, folder / CURRENT)
    result = export(config, current.since, folder / "export.parquet")
    if result["out"] is None and not config.logs:
        raise DataError(f"{config.ledger}: no session changed since the last round; serve some, then retrain")
    return {**result, "current": version}


def _import(config: RetrainConfig, current: Round, folder: Path) -> Step:
    pool, embedder = pool_of(config, folder / CURRENT)
    catalog = catalog_file(pool, folder / "catalog.json")
    new = folder / NEW
    imported = import_new(config, current.steps["export"]["out"], catalog, embedder, new)
    return imported | join(current.sessions or None, new, config.test_share, folder / SESSIONS)


def _judge(config: RetrainConfig, folder: Path) -> Step:
    from seqroute_ray.core.policy import PolicyArtefact
    from seqroute_ray.retraining.judge import judge

    old, new = (PolicyArtefact.load(folder / name) for name in (CURRENT, POLICY))
    sessions = holdout(folder / NEW, config.test_share)
    return asdict(judge(old, new, sessions, config.gate, config.cql.seed))


def _gate(config: RetrainConfig, current: Round, folder: Path) -> Step:
    from seqroute_ray.core.policy import PolicyArtefact
    from seqroute_ray.retraining.gate import check_judgement, check_pool
    from seqroute_ray.retraining.judge import Difference, Judgement

    rows = [Difference(**row) for row in current.steps["judge"]["differences"]]
    judgement = Judgement(**{**current.steps["judge"], "differences": tuple(rows)})
    old, new = (PolicyArtefact.load(folder / name) for name in (CURRENT, POLICY))
    checks = check_pool(old, new, config.catalog is not None) + check_judgement(judgement, config.gate)
    return {"passed": all(check.passed for check in checks), "checks": [asdict(check) for check in checks]}


def _register(config: RetrainConfig, current: Round, folder: Path) -> Step:
    steps = current.steps
    card = Registry(config.registry).add(
        folder / POLICY,
        parent=steps["export"]["current"],
        metrics={"gate": steps["gate"], "judgement": steps["judge"]},
        lineage={"round": current.number, "key": current.key, "since": current.since, **steps["candidate"]},
    )
    return {"version": card.version}


def _canary(config: RetrainConfig, current: Round) -> Step:
    registry, version = Registry(config.registry), current.steps["register"]["version"]
    now = registry.pointers()
    if version not in (now.canary, now.current):
        why = f"round {current.number} of retraining" + ("" if current.steps["gate"]["passed"] else ", forced")
        now = registry.start_canary(version, config.canary.share, why)
    return {"share": now.canary_share, "at": now.moved_at}


def _watch(config: RetrainConfig, current: Round) -> Step:
    """A look at the decision log; moves the pointers when it says so."""
    from seqroute_ray.retraining.watch import compare, read_seen

    registry, version = Registry(config.registry), current.steps["register"]["version"]
    pointers = registry.pointers()
    if version == pointers.current:
        return {"word": "promote", "why": f"it is current: {pointers.why}"}
    if version != pointers.canary:
        return {"word": "roll_back", "why": f"it is no canary any more: {pointers.why}"}
    if config.ledger is None:
        raise ConfigError("a canary is watched by the decision log: name the --ledger that servers write")
    since_s = datetime.fromisoformat(current.steps["canary"]["at"]).timestamp()
    after = int(current.steps["export"]["watermark"])
    seen = read_seen(config.ledger, config.redis_password_env, after, since_s)
    watched = compare(seen, hash_of(pointers.current), hash_of(version), config.canary)
    if watched.word == "promote":
        registry.promote(version, watched.why)
    elif watched.word == "roll_back":
        registry.roll_back(watched.why)
    return asdict(watched)
