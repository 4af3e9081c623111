"""TensorBoard event files of a training run."""

from pathlib import Path

from tensorboardX import SummaryWriter


class EventFiles:
    """A context manager; `write` adds the figures after so many gradient steps.

    A run that goes on where a killed one was writes into the same folder: of the steps done twice TensorBoard shows the
    later ones.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None  # from the first figures on: they tell where the run begins

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer:
            self._writer.close()

    def write(self, num_steps: int, figures: dict[str, float]) -> None:
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=num_steps)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, num_steps)
        self._writer.flush()  # a kill loses nothing
