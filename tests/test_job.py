"""A job's result is kept beside its output and found again while settings, data and output are the same."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.storage import Folder
from seqroute_ray.job import run_job


@dataclass(frozen=True, kw_only=True)
class Settings:
    out: str
    data: Path
    factor: int = 1
    dry_run: bool = False


class Counting:
    """A stage that writes one file, and counts how often it did."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, config: Settings) -> dict[str, Any]:
        self.runs += 1
        if config.factor < 0:
            raise DataError("a factor below 0")
        if not config.dry_run:
            Folder.at(config.out).write("output", b"x")
        return {"size": len(config.data.read_text()) * config.factor}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").write_text("four")
    return tmp_path / "data"


def submit(
    stage: Counting, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *flags: object
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["job.py", *map(str, flags)])
    code = run_job(Settings, stage, lambda config: [config.data])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_a_second_submit_finds_the_result_until_settings_data_or_output_change(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, flags = Counting(), ("--out", tmp_path / "out", "--data", data)
    assert submit(stage, capsys, monkeypatch, *flags) == (0, {"size": 4})
    kept = json.loads((tmp_path / "out.result.json").read_text())
    assert (kept["result"], kept["settings"]["factor"]) == ({"size": 4}, 1)
    assert submit(stage, capsys, monkeypatch, *flags) == (0, {"size": 4, "found": True})
    assert stage.runs == 1
    assert submit(stage, capsys, monkeypatch, *flags, "--factor", "2") == (0, {"size": 8})
    data.write_text("seven..")
    assert submit(stage, capsys, monkeypatch, *flags, "--factor", "2") == (0, {"size": 14})
    (tmp_path / "out" / "output").unlink()
    assert submit(stage, capsys, monkeypatch, *flags, "--factor", "2") == (0, {"size": 14})
    (tmp_path / "out.result.json").write_text("not ours")
    assert submit(stage, capsys, monkeypatch, *flags, "--factor", "2") == (0, {"size": 14})
    assert stage.runs == 5


def test_the_result_stands_beside_an_output_in_a_bucket(
    data: Path, s3_bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, out = Counting(), f"{s3_bucket}/job/out"
    for found in ({}, {"found": True}):
        assert submit(stage, capsys, monkeypatch, "--out", out, "--data", data) == (0, {"size": 4, **found})
    assert Folder.at(f"{s3_bucket}/job").exists("out.result.json")


@pytest.mark.parametrize(("flags", "code"), [(("--dry-run",), 0), (("--factor", "-1"), 1)], ids=["dry", "failed"])
def test_a_dry_run_and_a_failed_job_keep_nothing(
    flags: tuple[str, ...],
    code: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert submit(Counting(), capsys, monkeypatch, "--out", tmp_path / "out", "--data", data, *flags)[0] == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
