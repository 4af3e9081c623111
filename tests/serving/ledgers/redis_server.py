"""A real redis-server of its own port and folder, that can be killed and started again."""

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

MISSING = "redis-server is not installed: the ledger's tests need it (Debian: apt-get install redis-server)"


class RedisServer:
    """Runs from `start` to `stop` or `kill`; settings are those of redis.conf."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._settings = {"appendonly": "yes", "appendfsync": "always", "save": ""} | settings
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)  # of a test that failed

    def start(self) -> "RedisServer":
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError(MISSING)
        # A cluster's own port is 10,000 above, unless it is named: too high for some, taken for others.
        cluster = {"cluster-port": str(_free_port())} if "cluster-enabled" in self._settings else {}
        own = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder), "daemonize": "no"}
        flags = [word for name, value in (self._settings | cluster | own).items() for word in (f"--{name}", value)]
        with open(os.devnull, "wb") as nowhere:
            self._process = subprocess.Popen([program, *flags], stdout=nowhere)
        self._wait_until_it_answers()
        return self

    def kill(self) -> None:
        """As the kernel kills."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def _wait_until_it_answers(self) -> None:
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                    client.sendall(b"PING\r\n")
                    if client.recv(64)[:1] in (b"+", b"-") and self._process and self._process.poll() is None:
                        return
            except OSError:
                pass
            time.sleep(0.01)
        raise TimeoutError("redis-server did not answer in 20 s")


def _free_port() -> int:
    """One below those that the kernel gives to clients: while a server is away, one might take, or be, its port."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
