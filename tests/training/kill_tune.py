"""Tunes until one trial has ended and the next has looked twice, then kills itself: DATASET TUNE_SESSIONS OUT."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from seqroute_ray.ray_session import ray_session
from seqroute_ray.stages import tune_part
from seqroute_ray.training.trial_states import TrialState
from seqroute_ray.training.tune import tune
from tests.training.test_tune import config_to_kill

_, DATASET, TUNE_SESSIONS, OUT = sys.argv


def die(states: Sequence[TrialState]) -> None:
    if len(states) > 1 and states[1].num_steps == 500:
        os.kill(os.getpid(), signal.SIGKILL)


with ray_session():
    tune(config_to_kill(DATASET, Path(TUNE_SESSIONS), Path(OUT)), tune_part(DATASET, Path(TUNE_SESSIONS)), die)
