"""The stages as jobs of a cluster that asks for a token: submitted as docs say, from the repository's folder."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.training.cql_file import read_cql
from tests.retraining.support import candidate_in, registry_with, serve, session_names
from tests.support import make_artefact
from tests.training.toy_mdp import ToyMdp

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FEW_DRAWS = ("--num-replicates", "100")
FEW_STEPS = ("--cql.num-steps", "50", "--cql.batch-size", "64")
LIMITS = {
    "max-quality-loss": "2",
    "max-bankruptcy-rise": "2",
    "max-cost-rise": "100",
    "min-sessions": "2",
    "min-ess": "2",
}
LENIENT = (*(word for name, value in LIMITS.items() for word in (f"--gate.{name}", value)), "--gate.budgets", "1")
FEW_TRIALS = ("--num-trials", "2", "--search", "lr", "--judge-every", "50", "--grace-steps", "50")


@dataclass(frozen=True)
class Jobs:
    address: str
    env: dict[str, str]

    def submit(self, stage: str, *flags: str | Path) -> subprocess.CompletedProcess[str]:
        cluster = ("--address", self.address, "--working-dir", ".")
        command = [BIN / "ray", "job", "submit", *cluster, "--", "python", f"jobs/{stage}.py", *flags]
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON line that a job prints last."""
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    result: dict[str, Any] = json.loads(line)
    return result


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A cluster of their own. Its ports are free ones: other clusters of this machine may have Ray's."""
    token = tmp_path_factory.mktemp("auth") / "token"
    token.write_text(secrets.token_hex(32))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONUNBUFFERED": "1"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nobody waits for its last tasks
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"  # a job is started as `python`
    dashboard, *others = free_ports(3)
    ports = dict(zip(("dashboard-agent-listen-port", "ray-client-server-port"), others, strict=True))
    ports |= {"dashboard-port": dashboard, "port": 0, "min-worker-port": 0, "max-worker-port": 0}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # a socket's path is short
        flags = (f"--temp-dir={folder}", "--num-cpus=4", *(f"--{name}={port}" for name, port in ports.items()))
        command = [str(BIN / "ray"), "start", "--head", "--block", *flags]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ray:
            assert ray.stdout is not None
            shown = list(takewhile(lambda line: "Ray runtime started" not in line, ray.stdout))
            assert ray.poll() is None, "".join(shown)
            yield Jobs(f"http://127.0.0.1:{dashboard}", env)
            ray.terminate()


def free_ports(num: int) -> list[int]:
    with ExitStack() as sockets:
        probes = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Session files by part."""
    folder, files = tmp_path_factory.mktemp("sessions"), {}
    for seed, part in enumerate(("fit", "tune", "test")):
        drawn = ToyMdp(200, seed).sessions()
        files[part] = folder / f"{part}.parquet"
        write_sessions(replace(drawn, part=np.full(drawn.part.shape, part)), files[part])
    return files


@pytest.fixture(scope="module")
def dataset(jobs: Jobs, sessions: dict[str, Path]) -> Path:
    """Relabeled by a job."""
    out = sessions["fit"].parent / "dataset"
    relabeled = result_of(jobs.submit("relabel", "--sessions", sessions["fit"], "--out", out))
    assert (relabeled["runner"], relabeled["num_sessions"]) == ("ray", 200)
    return out


def test_a_policy_is_trained_and_evaluated_by_jobs(jobs: Jobs, dataset: Path, sessions: dict[str, Path]) -> None:
    policy, report = dataset.parent / "policy", dataset.parent / "report"
    trained = result_of(jobs.submit("train", "--dataset", dataset, "--out", policy, *FEW_STEPS))
    assert PolicyArtefact.load(policy).version == trained["policy_version"]
    evaluate = ("evaluate", "--policy", policy, "--sessions", sessions["test"], "--out", report, *FEW_DRAWS)
    evaluated = result_of(jobs.submit(*evaluate))
    for out, result in ((dataset, None), (policy, trained), (report, evaluated)):
        kept = json.loads(out.with_name(f"{out.name}.result.json").read_text())["result"]
        assert result is None or kept == result
    assert result_of(jobs.submit(*evaluate)) == {**evaluated, "found": True}
    rows = json.loads(Path(evaluated["report_json"]).read_text())["rows"]
    assert len(rows) == evaluated["num_rows"]
    assert "cql" in {row["policy"] for row in rows}


def test_a_search_by_a_job_finds_settings(jobs: Jobs, dataset: Path, sessions: dict[str, Path]) -> None:
    out = dataset.parent / "found"
    search = ("--dataset", dataset, "--tune-sessions", sessions["tune"], "--out", out, *FEW_STEPS, *FEW_TRIALS)
    found = result_of(jobs.submit("tune", *search))
    assert (found["num_trials"], found["num_errors"]) == (2, 0)
    looks = pq.read_table(found["results_parquet"]).to_pylist()
    assert {look["num_steps"] for look in looks} == {50}
    assert found["aiq"] == max(look["aiq"] for look in looks)
    assert read_cql(Path(found["best_json"])).lr in {look["lr"] for look in looks}


def test_a_policy_is_tried_and_promoted_by_jobs(jobs: Jobs, tmp_path: Path) -> None:
    current = make_artefact()
    registry, flags = registry_with(tmp_path, current), ("--registry", tmp_path / "registry")
    candidate_in(tmp_path)
    serve(tmp_path, session_names(), current.version)
    ledger = ("--ledger", tmp_path / "ledger.sqlite", "--out", tmp_path / "out", "--candidate", tmp_path / "candidate")
    tried = result_of(jobs.submit("retrain", *flags, *ledger, *LENIENT, "--test-share", "0.5"))
    assert (tried["outcome"], registry.pointers().canary) == ("on trial", tried["version"])
    assert result_of(jobs.submit("promote", *flags))["current"] == tried["version"]


def test_a_job_that_fails_says_why_and_so_does_its_exit_code(jobs: Jobs, sessions: dict[str, Path]) -> None:
    absent = sessions["tune"].parent / "absent"
    failed = jobs.submit("tune", "--dataset", absent, "--tune-sessions", sessions["tune"], "--out", absent)
    assert failed.returncode == 1
    assert f"seqroute: {absent}: no finished dataset here" in failed.stdout
    assert not absent.exists()
