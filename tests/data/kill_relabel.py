"""Relabels until some shards are done, then kills itself as the kernel would: arguments SESSIONS OUT SHARDS."""

import os
import signal
import sys

from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from seqroute_ray.data.tries import Done
from seqroute_ray.ray_session import ray_session
from tests.data.test_relabel import HBR


def die(done: Done) -> None:
    if done.shards == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)


with ray_session():
    relabel_sessions(RelabelConfig(sessions=sys.argv[1], out=sys.argv[2], hbr=HBR), die)
