"""Imports until some files or ranges are done, then kills itself as the kernel would: LOGS OUT files|ranges NUMBER."""

import os
import signal
import sys

from seqroute_ray.data.importer import import_logs
from seqroute_ray.data.importing import whole
from seqroute_ray.ray_session import ray_session
from tests.data.test_importing import RANGE_BYTES, config_of

_, LOGS, OUT, STEP, NUMBER = sys.argv


def die(what: str, done: int, _total: int) -> None:
    if (what.split()[0], done) == (STEP, int(NUMBER)):
        os.kill(os.getpid(), signal.SIGKILL)


whole.RANGE_BYTES = RANGE_BYTES
with ray_session():
    import_logs(config_of(LOGS, OUT), die)
