"""The trials of a search on stderr: a live table on a terminal, a line for each that ends elsewhere."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from seqroute_ray.progress import console

if TYPE_CHECKING:  # the module loads Ray Tune
    from seqroute_ray.training.trial_states import TrialState

ENDED = ("finished", "stopped", "failed")


class TrialTable:
    """A context manager; `show` takes the states of all trials so far."""

    def __init__(self, num_trials: int) -> None:
        self._num_trials, self._told, self._stack = num_trials, set[str](), ExitStack()
        self._live = Live(console=console, transient=False) if sys.stderr.isatty() else None

    def __enter__(self) -> "TrialTable":
        if self._live:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def show(self, states: "Sequence[TrialState]") -> None:
        if self._live:
            self._live.update(self._table(states))
            return
        for state in states:
            if state.status in ENDED and state.trial not in self._told:
                self._told.add(state.trial)
                console.print(f"tune, trials: {len(self._told)}/{self._num_trials} {_line(state)}", soft_wrap=True)

    def _table(self, states: "Sequence[TrialState]") -> Table:
        """The best first."""
        ended = sum(state.status in ENDED for state in states)
        table = Table(title=f"tune, trials: {ended}/{self._num_trials}")
        names = list(states[0].settings) if states else []
        for name in ("trial", "status", "steps", "AIQ", *names):
            table.add_column(name, justify="left" if name in ("trial", "status") else "right")
        for state in sorted(states, key=lambda state: -(state.metric or -1.0)):
            cells = [state.trial, state.status, str(state.num_steps), _aiq(state.metric)]
            table.add_row(*cells, *(_number(state.settings[name]) for name in names))
        return table


def _line(state: "TrialState") -> str:
    settings = " ".join(f"{name}={_number(value)}" for name, value in state.settings.items())
    return f"{state.trial} {state.status} steps={state.num_steps} aiq={_aiq(state.metric)} {settings}"


def _aiq(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
