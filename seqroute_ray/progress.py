"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_PER_LINE = 10.0  # between lines where stderr is no terminal

WIDTH = 132  # of tables where stderr is no terminal

console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH)
Update = Callable[[int, int, str], None]  # (done, in all, a note)


@contextmanager
def bar(title: str) -> Iterator[Update]:
    """Yields update(done, total, note)."""
    started = time.monotonic()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            task = progress.add_task(title, total=None, note="")

            def advance(done: int, total: int, note: str) -> None:
                progress.update(task, completed=done, total=total, note=note)

            yield advance
        return
    next_line = [0.0]

    def line(done: int, total: int, note: str) -> None:
        elapsed_s = time.monotonic() - started
        if elapsed_s >= next_line[0] or done == total:
            left = f", about {elapsed_s * (total - done) / done:.0f} s left" if 0 < done < total else ""
            console.print(f"{title}: {done}/{total} in {elapsed_s:.0f} s{left} {note}".rstrip())
            next_line[0] = elapsed_s + SECONDS_PER_LINE

    yield line
