"""The command line as a user meets it: one JSON line on stdout, one-line errors on stderr, exit codes 0, 1 and 2."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

MAKING = ("sample", "import", "relabel", "train", "calibrate", "add-model", "remove-model")
COMMANDS = (*MAKING, "evaluate", "ope", "serve", "new-key", "ledger", "registry", "retrain", "quickstart")
README = Path(__file__).parent.parent / "README.md"


def seqroute(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "seqroute_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_sample_and_import_print_one_json_line_each(tmp_path: Path) -> None:
    sampled = seqroute("sample", "--num-sessions", "30", "--out", "logs.parquet", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert json.loads(sampled.stdout)["num_rows"] == pq.read_metadata(tmp_path / "logs.parquet").num_rows
    imported = seqroute(
        "import", "--runner", "local", "--logs", "logs.parquet", "--out", "sessions.parquet", cwd=tmp_path
    )
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.count("\n") == 1
    report = json.loads(imported.stdout)
    assert (report["num_sessions"], report["num_bad_rows"]) == (30, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("sample", "--out", "x", "--num-sessions", "0"), 2, "num_sessions must be at least 1, got 0"),
        (("sample", "--out", "x", "--models", "gpt-9"), 2, "model 'gpt-9' is not in the catalog"),
        (("sample", "--out", "x", "--min-turns", "5", "--max-turns", "4"), 2, "min_turns <= max_turns"),
        (("import", "--logs", "absent.jsonl", "--out", "x"), 1, "absent.jsonl"),
        (("import", "--logs", "a", "b", "--out", "x", "--price", "m=1/2", "--price", "n=1"), 2, "OUTPUT in USD per"),
        (("relabel", "--sessions", "absent.parquet", "--out", "x"), 1, "absent.parquet: no such session file"),
        (("train", "--dataset", "absent", "--out", "x"), 1, "absent: no finished dataset here"),
        (("train", "--dataset", "absent", "--out", "x", "--cql.gamma", "2"), 2, "gamma must be in [0, 1], got 2.0"),
        (("evaluate", "--policy", "absent", "--sessions", "s", "--out", "x"), 1, "absent: no manifest.json here"),
        (("evaluate", "--policy", "p", "--sessions", "s", "--out", "x", "--budgets", "0"), 2, "budgets must be > 0"),
        (("ope", "--policy", "absent", "--sessions", "s", "--budget", "1"), 1, "absent: no manifest.json here"),
        (("ope", "--policy", "p", "--sessions", "s"), 2, "either as budget_usd or as budget"),
        (("calibrate", "--policy", "absent", "--sessions", "s"), 1, "absent: no manifest.json here"),
        (("add-model", "--policy", "absent", "--model", "m", "--out", "x"), 1, "absent: no manifest.json here"),
        (("remove-model", "--policy", "p", "--model", "m", "--out", "p"), 2, "out must be another folder than policy"),
        (("serve", "--config", "absent.yaml"), 2, "absent.yaml: cannot be read"),
        (("ledger", "audit", "--ledger", "absent.sqlite"), 2, "absent.sqlite: no such file"),
        (("ledger", "reconcile", "--ledger", "x", "--bill", "absent.csv"), 1, "absent.csv: cannot be read"),
        (("ledger", "export", "--ledger", "x", "--out", "y", "--since", "-1"), 2, "since must be >= 0"),
        (("quickstart", "--num-test-sessions", "1"), 2, "num_test_sessions must be at least 100"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    done = seqroute(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.startswith("seqroute: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_or_command_is_wrong_usage() -> None:
    for arguments in (("sample", "--out", "x", "--colour", "red"), ("fly",), ()):
        done = seqroute(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""


def test_every_command_has_help_and_is_named_in_the_readme() -> None:
    listed = seqroute("--help")
    assert listed.returncode == 0
    for command in COMMANDS:
        assert command in listed.stdout
        assert f"seqroute {command}" in README.read_text() or f"make {command}" in README.read_text()


def test_quickstart_does_not_delete_what_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = seqroute("quickstart", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "holds files that no quickstart wrote" in done.stderr
    assert (tmp_path / "thesis.txt").exists()
