"""Ray nodes on this machine that are like machines of their own: each has its scratch folder, and dies at once.

A path under /proc/self/cwd is one that only one node sees: there it is the node's scratch folder. TMPDIR is there too.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from _servers import descendants, title
from ray.cluster_utils import Cluster

Seen = TypeVar("Seen")
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240.0  # of anything that is waited for, on a busy machine
POLL_S = 0.02
NUM_CPUS = 1  # of a node that works: two workers, learners or replicas are on two nodes
# A node that does not answer is known for dead in 5 s, or in 15 s where nothing refuses the connection.
SYSTEM = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 5}


@dataclass(frozen=True, eq=False)
class WorkerNode:
    """One that works."""

    ray_node: Any
    scratch: Path  # its working directory, and its TMPDIR

    def processes(self) -> list[int]:
        """The raylet, then all that it has started."""
        (raylet,) = self.ray_node.all_processes["raylet"]
        return [raylet.process.pid, *descendants(raylet.process.pid)]

    def runs(self, name: str) -> bool:
        """Whether one of its processes calls itself so."""
        return bool(self.named(name))

    def named(self, name: str) -> list[int]:
        return [pid for pid in self.processes() if title(pid).startswith(name)]

    def errors_of(self, name: str) -> str:
        """What such processes have written on stderr so far."""
        logs = Path(self.ray_node.get_logs_dir_path())
        return "".join(path.read_text() for pid in self.named(name) for path in logs.glob(f"worker-*-{pid}.err"))


class Nodes:
    """A head that does no work, and workers that come and go."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.workers: list[WorkerNode] = []
        self._scratch = scratch
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder), "_system_config": SYSTEM}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> WorkerNode:
        scratch = self._scratch / f"node-{len(list(self._scratch.iterdir()))}"
        scratch.mkdir()
        with chdir(scratch):
            ray_node = self._cluster.add_node(num_cpus=NUM_CPUS, env_vars={"TMPDIR": str(scratch)})
        self.workers.append(WorkerNode(ray_node, scratch))
        return self.workers[-1]

    def kill(self, node: WorkerNode) -> None:
        """The kernel closes its connections: others notice at once."""
        self._send(node, signal.SIGKILL)
        self._remove(node)

    def freeze(self, node: WorkerNode) -> None:
        """As when its power or its network fails: nobody closes its connections. `kill` it in the end."""
        self._send(node, signal.SIGSTOP)

    def _send(self, node: WorkerNode, what: signal.Signals) -> None:
        for pid in node.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, what)

    def stop(self) -> None:
        for node in [*self.workers]:
            self._remove(node)
        self._cluster.shutdown()

    def _remove(self, node: WorkerNode) -> None:
        self._cluster.remove_node(node.ray_node, allow_graceful=False)
        self.workers.remove(node)

    @contextmanager
    def command(self, *words: str | Path, cwd: Path = ROOT) -> Iterator["Command"]:
        """A command that works on these nodes while the block runs."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            env = {**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": path}
            with subprocess.Popen([sys.executable, "-m", *words], cwd=cwd, env=env, stdout=out, stderr=err) as process:
                try:
                    yield Command(process, out, err)
                finally:
                    process.kill()

    def seqroute(self, *words: str | Path, cwd: Path = ROOT) -> "Ended":
        """A command of ours, to its end."""
        with self.command("seqroute_ray.cli", *words, cwd=cwd) as command:
            return command.ended()


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON line of a command that did its work."""
        assert self.code == 0, self.stderr
        result: dict[str, Any] = json.loads(self.stdout)
        return result


@dataclass(frozen=True)
class Command:
    """One that runs."""

    process: subprocess.Popen[bytes]
    out: Any  # file of its standard output
    err: Any

    def ended(self) -> Ended:
        """Once it has."""
        code = self.process.wait(TIMEOUT_S)
        return Ended(code, *map(_text, (self.out, self.err)))

    def until(self, look: Callable[[], Seen]) -> Seen:
        """What is seen, once it is something, while the command runs."""

        def look_at_it() -> Seen:
            assert self.process.poll() is None, _text(self.err)
            return look()

        return wait_until(look_at_it)


def wait_until(look: Callable[[], Seen]) -> Seen:
    """What is seen, once it is something. Raises TimeoutError."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not seen in {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    return seen


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())
