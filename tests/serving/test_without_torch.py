"""A server answers where only the extra `serve` is installed: neither torch nor what trains is ever imported.

The server runs in a process in which importing them fails, as where they are not installed; and the extra names no
package that would bring torch. That the packages of the extra are enough is for a job with a fresh environment.
"""

import json
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

from .support import QUESTIONS, free_port, random_artefact, settings, trio, write_settings

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "gymnasium", "ray.rllib", "ray.tune", "matplotlib", "tensorboardX", "jinja2", "optuna")
SERVER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in {forbidden!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())

import uvicorn
from pathlib import Path
from seqroute_ray.serving.api import make_api
from seqroute_ray.serving.config import load_config

uvicorn.run(make_api(load_config(Path({settings!r}))), port={port}, log_level="error")
"""


def test_requests_are_answered_where_torch_cannot_be_imported(tmp_path: Path, upstream_url: str) -> None:
    path, port = write_settings(tmp_path, settings(tmp_path, random_artefact(trio()), upstream_url)), free_port()
    code = SERVER.format(forbidden=FORBIDDEN, settings=str(path), port=port)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as server:
        try:
            _wait(server, port)
            body = json.dumps({"messages": [{"role": "user", "content": QUESTIONS[0]}]}).encode()
            headers = {"x-session-budget-usd": "0.01", "content-type": "application/json"}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as response:
                answer = json.load(response)
        finally:
            server.terminate()
            server.wait()
    assert answer["seqroute"]["cost_usd"] > 0


def test_the_refusal_refuses() -> None:
    code = SERVER.format(forbidden=FORBIDDEN, settings="", port=0).split("import uvicorn")[0] + "import torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_the_extra_serve_brings_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    for each in wanted:
        assert not any(word in each for word in ("torch", "rllib", "tune", "gymnasium")), each


def _wait(server: "subprocess.Popen[str]", port: int) -> None:
    """Until it answers. Fails when it ends first."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise AssertionError(server.stderr.read() if server.stderr else "")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("no answer in a minute")
