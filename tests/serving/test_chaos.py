"""The harness of benchmarks/chaos.py, in seconds: two replicas on uvicorn, real kills, three books compared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def chaos(*flags: str) -> tuple[int, Any]:
    """Exit code and report."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks/chaos.py"), "--quick", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_no_session_overspends_whatever_is_killed(store: str) -> None:
    code, report = chaos("--stores", store, "--no-broken-ledger")
    assert (code, report["broken"]) == (0, [])
    kills = next(phase for phase in report["phases"] if phase["phase"].endswith("/kills"))
    assert kills["kills"]["replica"] >= 1
    assert kills["kills"]["everything"] == 1
    assert kills["expired_attempts"] >= 1
    assert all(phase["answered"] for phase in report["phases"])


def test_the_harness_finds_out_a_ledger_that_checks_then_adds() -> None:
    code, report = chaos("--stores")
    (phase,) = report["phases"]
    assert code == 0
    assert phase["overshoot_nusd"] > 0
    assert phase["ledger_overshoot_nusd"] > 0
