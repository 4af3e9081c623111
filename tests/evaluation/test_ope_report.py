"""`seqroute ope` on session files, and on what a server's ledger exports."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqroute_ray.cli import COMMANDS, run
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.ledger import Feedback
from seqroute_ray.core.sessions import Sessions, read_sessions, write_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.evaluation.config import OpeConfig
from seqroute_ray.evaluation.ope_report import evaluate_ope
from seqroute_ray.serving.decision_log import export_decisions
from tests.evaluation.ope_support import acting
from tests.serving.ledgers.support import LEASE_S, opened, turn_of
from tests.support import make_artefact, make_sessions

ARTEFACT = make_artefact()


def log_of(num_sessions: int, seed: int = 0) -> Sessions:
    """Uniformly random actions, nothing known of the other model."""
    sessions = make_sessions([2] * num_sessions, seed=seed)
    action = np.random.default_rng(seed).integers(2, size=2 * num_sessions)
    logged = acting(sessions, action, 0.5)
    nothing = np.full_like(sessions.outcome_quality, np.nan)
    return replace(logged, outcome_quality=nothing, outcome_cost_nusd=np.full(nothing.shape, -1))


def saved(tmp_path: Path, sessions: Sessions) -> dict[str, Any]:
    """The paths of OpeConfig."""
    ARTEFACT.save(tmp_path / "policy")
    write_sessions(sessions, tmp_path / "sessions.parquet")
    return {"policy": tmp_path / "policy", "sessions": tmp_path / "sessions.parquet"}


def test_a_report_tells_of_the_log_and_of_the_policy(tmp_path: Path) -> None:
    paths = saved(tmp_path, log_of(500))
    report = evaluate_ope(OpeConfig(**paths, budget=0.4, out=tmp_path / "more" / "ope.json"))
    assert json.loads((tmp_path / "more" / "ope.json").read_text()) == json.loads(json.dumps(report))
    assert report["budget_usd"] == pytest.approx(0.4 * ARTEFACT.layout.reference_cost_usd)
    assert (report["log"]["num_sessions"], report["log"]["num_turns"], report["log"]["num_groups"]) == (500, 1000, 1000)
    assert 0 < report["log"]["bankruptcy_rate"] < 0.5
    for answer in report["answers"]:
        low, high = answer["interval"]
        assert answer["concluded"] is True
        assert low < answer["value"] < high
        assert answer["difference"] == pytest.approx(answer["value"] - report["log"]["quality"])
    sessions_report = evaluate_ope(OpeConfig(**paths, budget=0.4, per="session"))
    assert sessions_report["answers"][0]["value"] == pytest.approx(2 * report["answers"][0]["value"])


def test_exploring_as_much_as_the_logger_is_worth_what_it_earned(tmp_path: Path) -> None:
    report = evaluate_ope(OpeConfig(**saved(tmp_path, log_of(300)), budget_usd=1e3, epsilon=1.0))
    for answer in report["answers"][:2]:
        assert answer["difference"] == pytest.approx(0.0, abs=1e-5)


def test_a_log_that_cannot_tell_is_a_refusal_of_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = saved(tmp_path, log_of(30))
    assert run(lambda: COMMANDS["ope"](OpeConfig(**paths, budget_usd=1.0))) == 0
    printed = capsys.readouterr()
    answers = json.loads(printed.out)["answers"]
    assert [(answer["concluded"], "value" in answer) for answer in answers] == [(False, False)] * 3
    assert "effective sample size" in answers[0]["why"]
    assert "ope, doubly_robust: no: effective sample size" in " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either as budget_usd or as budget"),
        ({"budget": 1.0, "budget_usd": 1.0}, "either as budget_usd or as budget"),
        ({"budget": 0.0}, "budget must be > 0 and finite, got 0.0"),
        ({"budget_usd": float("inf")}, "budget_usd must be > 0 and finite, got inf"),
        ({"budget": 1.0, "lambda_per_usd": -1.0}, "lambda_per_usd must be finite and >= 0, got -1.0"),
        ({"budget": 1.0, "epsilon": 2.0}, r"epsilon must be in \[0, 1\], got 2.0"),
        ({"budget": 1.0, "min_ess": 1.0}, "min_ess must be at least 2"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OpeConfig(policy=Path("p"), sessions=Path("s"), **fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedder": "other"}, "vectors of embedder 'other', the policy reads those of 'wordllama'"),
        ({"propensity": np.full(60, np.nan, dtype=np.float32)}, "60 of 60 turns have no propensity"),
        ({"propensity": np.ones(60, dtype=np.float32)}, "propensity is 1 in all 60 turns"),
    ],
)
def test_a_log_of_the_wrong_kind_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    paths = saved(tmp_path, replace(log_of(30), **change))
    with pytest.raises(DataError, match=words):
        evaluate_ope(OpeConfig(**paths, budget=1.0))


async def serve_sessions(place: str, num_sessions: int, out: Path) -> None:
    """What a server leaves: every turn with its propensity, two of three of them judged by a user."""
    rng = np.random.default_rng(0)
    async with opened(place) as ledger:
        for session in range(num_sessions):
            await ledger.open(f"s{session}", 10**9)
            for number in range(2):
                model, name = ARTEFACT.catalog.names[rng.integers(2)], f"{session}-{number}"
                await ledger.reserve(f"s{session}", name, model, 2000, LEASE_S)
                turn = turn_of(f"d-{name}", 1000, model=model, propensity=0.5)
                await ledger.settle(f"s{session}", name, 1000, turn=turn)
                if rng.random() < 2 / 3:
                    score = float(rng.random() < 0.7)
                    await ledger.add_feedback(Feedback(target=f"d-{name}", judge="user", score=score, at_s=1.0))
        await export_decisions(ledger, out)


def test_the_decision_log_of_a_server_can_be_evaluated(tmp_path: Path) -> None:
    asyncio.run(serve_sessions(str(tmp_path / "ledger.sqlite"), 150, tmp_path / "log.parquet"))
    ARTEFACT.save(tmp_path / "policy")
    (tmp_path / "catalog.json").write_text(json.dumps(ARTEFACT.catalog.to_json()))
    import_logs(
        ImportConfig(
            logs=(str(tmp_path / "log.parquet"),),
            out=str(tmp_path / "sessions.parquet"),
            catalog=tmp_path / "catalog.json",
            models=ARTEFACT.catalog.names,
            embedder=ARTEFACT.embedder,
            runner="local",
        )
    )
    sessions = read_sessions(tmp_path / "sessions.parquet")
    assert not np.isfinite(sessions.quality).all()
    config = OpeConfig(
        policy=tmp_path / "policy", sessions=tmp_path / "sessions.parquet", budget_usd=1e-3, epsilon=0.5, min_ess=30
    )
    report = evaluate_ope(config)
    assert 0.5 < min(report["log"]["judged_share_by_model"].values()) < 0.8
    for answer in report["answers"]:
        assert answer["concluded"], answer["why"]
        low, high = answer["interval"]
        assert low < 0.7 < high
