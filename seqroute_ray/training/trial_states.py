"""What a search tells while it runs: the state of each trial."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from ray import tune as ray_tune
from ray.tune.experiment import Trial

from seqroute_ray.training.train import METRIC
from seqroute_ray.training.trial import NUM_STEPS, Settings, settings_of

Status = Literal["waiting", "running", "finished", "stopped", "failed"]  # stopped: fell behind (ASHA)


@dataclass(frozen=True)
class TrialState:
    """One row of the table of trials."""

    trial: str
    status: Status
    settings: Settings
    num_steps: int  # gradient steps so far
    metric: float | None  # at the last look


Show = Callable[[Sequence[TrialState]], None]
# Not a field of ShowTrials: Tune stores its callbacks with the search, and a terminal cannot be stored.
listener: ContextVar[Show] = ContextVar("listener")


class ShowTrials(ray_tune.Callback):
    """Tells of the trials whenever one of them says something."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def on_trial_start(self, **event: Any) -> None:
        listener.get()([_state(trial, self._num_steps) for trial in event["trials"]])

    on_trial_result = on_trial_complete = on_trial_error = on_experiment_end = on_trial_start


def _state(trial: Trial, num_steps: int) -> TrialState:
    done = int(trial.last_result.get(NUM_STEPS, 0))
    status: dict[str, Status] = {"RUNNING": "running", "ERROR": "failed", "TERMINATED": status_at_end(done, num_steps)}
    return TrialState(
        trial=trial.trial_id,
        status=status.get(trial.status, "waiting"),
        settings=settings_of(trial.config),
        num_steps=done,
        metric=trial.last_result.get(METRIC),
    )


def status_at_end(done: int, num_steps: int) -> Status:
    return "finished" if done >= num_steps else "stopped"
