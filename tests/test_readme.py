"""README's blocks run as they stand, in a copy of the repository, on a small sample.

`make` is a fresh clone's business (`.ci/run`, test_quickstart.py). A command whose defaults take minutes gets flags
that make it short; a server is started in the background, and what follows waits until it is ready.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.data.catalogs import load_catalog
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.sample import DEFAULT_POOL, SampleConfig, write_sample

from .pages import README, Followed, blocks_of, copy_repository, follow, with_free_ports
from .serving.support import free_port

pytestmark = pytest.mark.ray
MAKE, OWN_LOGS, SERVE = (block.text for block in blocks_of(README))
SHORT = {
    "seqroute sample ": "--num-sessions 30",
    "seqroute import ": "--runner local",
    "seqroute relabel ": "--runner local",
    "seqroute train ": "--cql.num-steps 50",
    "seqroute evaluate ": "--num-replicates 100",
}
WAIT = "--retry 100 --retry-delay 1 --retry-all-errors"  # also while Serve answers that there is no application yet
READY = f"curl --silent --fail {WAIT} http://127.0.0.1:8000/readyz > ready.json\n"
PORTS = (8000, 8199)  # of the server and of the stand-in for the providers


def test_the_first_block_makes_what_the_makefile_has() -> None:
    assert [line.partition("#")[0].strip() for line in MAKE.splitlines()] == ["make quickstart", "make test"]


@pytest.fixture(scope="module")
def own_logs(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Followed:
    folder = copy_repository(tmp_path_factory.mktemp("readme") / "repository")
    make_files(folder)
    text = "".join(shortened(line) for line in OWN_LOGS.splitlines())
    return follow([text], folder, {"RAY_ADDRESS": ray_cluster})


def make_files(folder: Path) -> None:
    """What the block finds: logs in the log schema with a catalog, and sessions that another policy served."""
    write_sample(SampleConfig(num_sessions=60, with_outcomes=True, seed=1), folder / "logs.jsonl.parquet")
    rows = pq.read_table(folder / "logs.jsonl.parquet").drop_columns(["part"]).to_pylist()
    (folder / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "catalog.yaml").write_text(yaml.safe_dump(load_catalog(None).select(DEFAULT_POOL).to_json()))
    log, served = (folder / name for name in ("served-log.parquet", "served.parquet"))
    write_sample(SampleConfig(num_sessions=60, max_turns=5, seed=2), log)
    import_logs(ImportConfig(logs=(log,), out=served, models=DEFAULT_POOL, runner="local"))


def shortened(line: str) -> str:
    command, hash_, comment = line.partition("  #")
    flags = next((flags for begin, flags in SHORT.items() if line.startswith(begin)), "")
    return f"{command} {flags}{hash_}{comment}\n"


def test_own_logs_become_a_policy_that_is_judged(own_logs: Followed) -> None:
    commands = [line.split()[1] for line in OWN_LOGS.splitlines()]
    result = dict(zip(commands, own_logs.json_of(0), strict=True))
    assert result["import"]["num_sessions"] == 60
    assert PolicyArtefact.load(own_logs.folder / "policy").catalog.names == DEFAULT_POOL
    assert Path(own_logs.folder / result["evaluate"]["report_html"]).exists()
    assert {answer["estimator"] for answer in result["ope"]["answers"]} >= {"doubly_robust"}


def test_the_served_policy_answers_the_request_within_its_budget(own_logs: Followed, ray_cluster: str) -> None:
    folder = own_logs.folder
    shutil.copytree(folder / "policy", folder / "runs/quickstart/policy")
    ports = {port: free_port() for port in PORTS}
    settings = folder / "serve_configs/local_upstreams.yaml"
    settings.write_text(with_free_ports(settings.read_text(), ports))
    serve, *ask = SERVE.splitlines(keepends=True)
    command = serve.partition("  #")[0]
    blocks = [f"{command} --port 8000 2> serve.log &\n{READY}", "".join(ask), "kill %1\nwait\n"]
    followed = follow([with_free_ports(text, ports) for text in blocks], folder, {"RAY_ADDRESS": ray_cluster})
    (answer,) = followed.json_of(1)
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["seqroute"]["cost_usd"] < 0.01
    assert answer["seqroute"]["remaining_usd"] == pytest.approx(0.01 - answer["seqroute"]["cost_usd"])
