"""Commands start a Ray of their own unless they are told of a cluster, whatever else runs on the machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
OWN = """
import ray
from seqroute_ray.ray_session import ray_session
with ray_session():
    print(ray.cluster_resources()["CPU"])
"""


def test_a_cluster_that_somebody_started_here_is_not_joined_unasked() -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # a socket's path is short
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:1")  # as `ray start --head` leaves it
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", OWN], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 4
