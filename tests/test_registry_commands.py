"""`seqroute registry`: what each command prints and moves."""

import json
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.cli import COMMANDS, main
from seqroute_ray.core.registry import Registry
from tests.support import make_artefact


@pytest.fixture
def policies(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "policies" / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        make_artefact(seed=seed).save(folder)
    return folders


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a registry command: exit code, its JSON line or None, stderr."""

    def run(command: str, *flags: str | Path) -> tuple[int, Any, str]:
        words = ["seqroute", "registry", command, "--registry", str(tmp_path / "registry"), *map(str, flags)]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), json.loads(out) if out else None, err

    return run


def test_registry_is_a_command() -> None:
    assert "registry" in COMMANDS


def test_a_version_becomes_canary_then_current_and_goes_back(say: Any, policies: list[Path], tmp_path: Path) -> None:
    _, first, _ = say("add", "--policy", policies[0], "--promote")
    _, second, _ = say("add", "--policy", policies[1])
    assert second["pointers"]["current"] == first["version"]
    _, pointers, _ = say("canary", "--version", second["version"], "--share", "0.1", "--why", "trial")
    assert (pointers["canary"], pointers["why"]) == (second["version"], "trial")
    _, listed, table = say("list")
    assert [card["version"] for card in listed["versions"]] == [first["version"], second["version"]]
    assert "canary, 10%" in table
    assert listed["versions"][1]["parent"] == first["version"]
    _, promoted, _ = say("promote")
    assert (promoted["current"], promoted["canary"]) == (second["version"], "")
    _, shown, _ = say("show")
    assert (shown["version"], shown["models"]) == (second["version"], list(make_artefact().catalog.names))
    _, back, _ = say("rollback")
    assert back["current"] == first["version"] == Registry(tmp_path / "registry").pointers().current


def test_a_promotion_without_a_canary_wants_a_version(say: Any, policies: list[Path]) -> None:
    say("add", "--policy", policies[0])
    code, result, error = say("promote")
    assert (code, result) == (2, None)
    assert "there is no canary to promote" in error
