"""Tunes until some trials have ended, then kills itself as the kernel would: DATASET TUNE_SESSIONS OUT NUMBER."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from seqroute_ray.ray_session import ray_session
from seqroute_ray.stages import tune_part
from seqroute_ray.training.tune import TrialState, tune
from tests.training.test_tune import config_of

_, DATASET, TUNE_SESSIONS, OUT, NUMBER = sys.argv


def die(states: Sequence[TrialState]) -> None:
    if sum(state.status == "TERMINATED" for state in states) == int(NUMBER):
        os.kill(os.getpid(), signal.SIGKILL)


with ray_session():
    tune(config_of(DATASET, Path(TUNE_SESSIONS), Path(OUT)), tune_part(DATASET, Path(TUNE_SESSIONS)), die)
