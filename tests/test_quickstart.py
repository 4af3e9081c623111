"""The paper-size run as a newcomer starts it; only its training is shorter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    arguments = ["quickstart", "--out", str(out), "--num-steps", "1000", "--num-test-sessions", "500"]
    command = [sys.executable, "-m", "seqroute_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False), out


def test_quickstart_prints_one_json_line_with_what_it_did(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert result["num_sessions"] == 10_000
    assert result["num_transitions"] >= 2_380_000
    assert result["runner"] == "ray"
    assert result["num_workers"] >= 2
    assert result["wall_s"] > 0
    for name in ("policy_dir", "report_json", "report_html"):
        assert Path(result[name]).exists()
    assert Path(result["report_html"]) == out / "report.html"
    assert "budget heuristic" in done.stderr
    assert "WARNING" not in done.stderr


def test_the_served_session_stays_within_its_budget(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = finished
    turns = json.loads(done.stdout)["served_turns"]
    reference_usd = json.loads((out / "report.json").read_text())["header"]["reference_cost_usd"]
    assert [turn["turn"] for turn in turns] == list(range(6))
    assert sum(turn["cost_usd"] for turn in turns) == pytest.approx(turns[-1]["spent_usd"])
    assert turns[-1]["spent_usd"] + turns[-1]["remaining_usd"] == pytest.approx(0.2 * reference_usd)
    assert turns[-1]["remaining_usd"] >= 0


def test_the_trained_policy_beats_chance_everywhere(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    rows = json.loads((finished[1] / "report.json").read_text())["rows"]
    quality = {(row["policy"], row["budget_usd"]): row["quality"] for row in rows if not row["lambda_per_usd"]}
    budgets = {budget for _, budget in quality}
    assert len(budgets) == 6
    for budget in budgets:
        assert quality["random", budget] < quality["cql", budget] < quality["oracle", budget]
