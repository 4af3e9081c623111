"""Servers as processes that can be killed and started again: replicas on uvicorn, or Ray Serve with all that is its."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

HERE = Path(__file__).parent
START_TIMEOUT_S = 120.0
TITLES = {"replica": "ray::ServeReplica", "controller": "ray::ServeController"}  # how the processes call themselves


class Server(Protocol):
    """What a chaos run needs of one."""

    base_urls: list[str]

    def start(self) -> None:
        """Return when every replica answers."""
        ...

    def kill(self, what: str, rng: np.random.Generator) -> bool:
        """SIGKILL one process of a kind; False when none can be spared: of replicas, one keeps answering."""
        ...

    def processes(self, what: str) -> list[int]: ...

    def kill_all(self) -> None: ...

    def stop(self) -> None: ...


class UvicornReplicas:
    """A process and a port each; a killed one is started again at once."""

    def __init__(self, config: Path, ports: list[int], *flags: str) -> None:
        self.base_urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._config, self._ports, self._flags = config, ports, flags
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def processes(self, what: str) -> list[int]:
        """Ids of the processes of a kind; all are replicas."""
        return [process.pid for process in self._processes.values()] if what == "replica" else []

    def start(self) -> None:
        for port in self._ports:
            self._spawn(port)
        for base_url in self.base_urls:
            wait_until_ready(base_url)

    def kill(self, what: str, rng: np.random.Generator) -> bool:
        if what != "replica" or not all(map(is_ready, self.base_urls)):
            return False
        port = int(rng.choice(self._ports))
        _end(self._processes[port], signal.SIGKILL)
        self._spawn(port)
        return True

    def kill_all(self) -> None:
        self._end_all(signal.SIGKILL)

    def stop(self) -> None:
        self._end_all(signal.SIGTERM)

    def _spawn(self, port: int) -> None:
        command = [sys.executable, str(HERE / "_replica.py"), "--config", str(self._config), "--port", str(port)]
        self._processes[port] = subprocess.Popen([*command, *self._flags], stdout=subprocess.DEVNULL, env=environment())

    def _end_all(self, how: signal.Signals) -> None:
        for process in self._processes.values():
            process.send_signal(how)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()


class RayServe:
    """One cluster with Serve; `timeline` has the numbers of replicas by state, as they changed."""

    def __init__(self, config: Path, port: int, options: dict[str, Any], **env: str) -> None:
        self.base_urls = [f"http://127.0.0.1:{port}"]
        self.timeline: list[dict[str, Any]] = []
        self._config, self._port, self._options, self._env = config, port, options, env
        self._host: subprocess.Popen[str] | None = None
        self._begun_s = time.monotonic()

    def now_s(self) -> float:
        """On the timeline's clock."""
        return round(time.monotonic() - self._begun_s, 2)

    def start(self) -> None:
        command = [sys.executable, str(HERE / "_serve_host.py"), "--config", str(self._config)]
        command += ["--port", str(self._port), "--options", json.dumps(self._options)]
        pipe = subprocess.PIPE
        self._host = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment() | self._env)
        assert self._host.stdout is not None
        ready = self._host.stdout.readline()
        if not ready:
            raise RuntimeError("Ray Serve did not start; see its errors above")
        threading.Thread(target=self._read, args=(self._host.stdout,), daemon=True).start()
        wait_until_ready(self.base_urls[0])

    def kill(self, what: str, rng: np.random.Generator) -> bool:
        found = self.processes(what)
        if not found or (what == "replica" and self.num_running < 2):
            return False
        _kill([found[int(rng.integers(len(found)))]])
        return True

    @property
    def num_running(self) -> int:
        """Replicas that answer, as far as the controller knew last."""
        return self.timeline[-1]["replicas"].get("RUNNING", 0) if self.timeline else 0

    def processes(self, what: str) -> list[int]:
        """Ids of the cluster's processes of a kind."""
        return sorted(pid for pid in self._all() if title(pid).startswith(TITLES[what]))

    def kill_all(self) -> None:
        """Everything that belongs to the cluster, the host first: nothing can be restarted by it."""
        processes = self._all()
        if self._host is not None:
            _end(self._host, signal.SIGKILL)
        _kill(processes)
        self._host = None

    def stop(self) -> None:
        if self._host is None:
            return
        processes = self._all()
        try:
            self._host.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self.kill_all()
        _kill([pid for pid in processes if title(pid)])  # none is left, unless Ray forgot one
        self._host = None

    def _all(self) -> list[int]:
        return descendants(self._host.pid) if self._host else []

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("{"):  # else it is Ray's
                self.timeline.append({"at_s": self.now_s(), **json.loads(line)})
            print(line.strip(), file=sys.stderr)


def environment() -> dict[str, str]:
    """Of a server: finds this repository first, uses one core for numpy."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def free_port() -> int:
    """Of this machine, and not one that the kernel gives to whoever asks: it stays free while its server is away."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port in 100 tries between 20000 and 30000")


def wait_until_ready(base_url: str) -> None:
    """Return once GET /readyz is 200. Raises TimeoutError."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if is_ready(base_url):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{base_url}/readyz did not answer in {START_TIMEOUT_S:.0f} s")


def descendants(pid: int) -> list[int]:
    """Ids of all processes that a process has started, at whatever remove. Linux only."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:  # grows
        found += children.get(each, [])
    return found[1:]


def title(pid: int) -> str:
    """As the process calls itself; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_ready(base_url: str) -> bool:
    """GET /readyz is 200."""
    try:
        with urllib.request.urlopen(f"{base_url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end(process: subprocess.Popen[Any], how: signal.Signals) -> None:
    process.send_signal(how)
    process.wait()
