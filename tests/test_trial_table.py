"""The trials of a search on stderr."""

import io

import pytest
from rich.console import Console

from seqroute_ray import trial_table
from seqroute_ray.training.trial_states import TrialState
from seqroute_ray.trial_table import TrialTable

FIRST = TrialState("one", "running", {"lr": 0.00123456, "hidden": (64, 64)}, 250, 0.51239)
WAITING = TrialState("two", "waiting", {"lr": 0.5, "hidden": (32, 32)}, 0, None)
DONE = TrialState("one", "stopped", FIRST.settings, 500, 0.6)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(trial_table, "console", Console(file=text, width=80))
    return text


def test_without_a_terminal_a_trial_is_told_once_and_on_one_line(shown: io.StringIO) -> None:
    with TrialTable(2) as table:
        table.show([FIRST])
        table.show([DONE, WAITING])
        table.show([DONE, WAITING])
    assert shown.getvalue() == "tune, trials: 1/2 one stopped steps=500 aiq=0.6000 lr=0.00123 hidden=64-64\n"


def test_on_a_terminal_there_is_a_row_a_trial_and_the_best_comes_first(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with TrialTable(3) as table:
        table.show([WAITING, FIRST, DONE])
    rows = [line.split("│")[1:-1] for line in shown.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows[-3:]] == [
        ["one", "stopped", "500", "0.6000", "0.00123", "64-64"],
        ["one", "running", "250", "0.5124", "0.00123", "64-64"],
        ["two", "waiting", "0", "-", "0.5", "32-32"],
    ]
    assert "tune, trials: 1/3" in shown.getvalue()
