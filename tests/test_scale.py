"""docs/scale.md says what benchmarks/scale.py computes, and the simulation behind it agrees with what is known."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving.ledgers import redis_scripts
from seqroute_ray.serving.ledgers.redis_client import RedisClient

ROOT = Path(__file__).parent.parent
NUM = 200_000


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("sharding")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_tables_of_the_page_are_the_models_output(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--check"]
    subprocess.run([*command, str(ROOT / "docs/scale.md")], check=True, capture_output=True)
    other = tmp_path / "other.md"
    other.write_text((ROOT / "docs/scale.md").read_text().replace("| ledger shards |", "| shards |"))
    refused = subprocess.run([*command, str(other)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "has other tables of serving" in refused.stderr


def test_slots_are_those_of_redis_cluster(sharding: Any) -> None:
    names = np.frombuffer(b"123456789", dtype=np.uint8)[None]
    assert sharding.slots_of(names).tolist() == [0x31C3 % 16384]  # the check value of CRC16/XMODEM


def test_no_session_asks_more_than_the_limit_and_all_is_asked(sharding: Any, rng: np.random.Generator) -> None:
    shares = sharding.rates_of(rng, NUM, "zipf 1.0 capped")
    assert shares.max() == pytest.approx(sharding.MAX_SESSION_PER_S / sharding.REQUESTS_PER_S)
    assert shares.sum() == pytest.approx(1)


def test_commands_that_wait_share_one_sync(sharding: Any) -> None:
    latencies = sharding.latencies(np.array([0.0, 0.5, 1.0]), np.ones(3), 1.0)
    assert latencies.tolist() == [2.0, 4.5, 4.0]  # one alone until 2, then two until 2 + 2 + 1


def test_a_queue_without_syncs_waits_as_theory_says(sharding: Any, rng: np.random.Generator) -> None:
    assert sharding.waits(np.array([0.0, 0.5, 3.0]), np.ones(3)).tolist() == [0.0, 0.5, 0.0]
    services = sharding.services_of(rng, NUM)
    arrivals = sharding.arrivals_of(rng, NUM, 0.6 / services.mean(), bursts=False)
    by_theory = 0.6 / (1 - 0.6) * np.mean(services**2) / (2 * services.mean())  # Pollaczek and Khinchine
    assert np.mean(sharding.waits(arrivals, services)) == pytest.approx(by_theory, rel=0.05)


def test_a_shard_that_joins_takes_its_share_but_by_modulo_nearly_all_move(
    sharding: Any, rng: np.random.Generator
) -> None:
    moved = sharding.moved(rng, NUM, 8)
    assert moved["modulo"] == pytest.approx(8 / 9, abs=0.01)
    assert moved["slots, as few as possible"] == pytest.approx(1 / 9, abs=0.01)
    assert moved["rendezvous"] == pytest.approx(1 / 9, abs=0.01)


@given(st.text(min_size=1, max_size=20))
def test_all_keys_of_a_session_have_one_hash_tag_whatever_its_name(name: str) -> None:
    scripts = [value for value in vars(redis_scripts).values() if isinstance(value, redis_scripts.Script)]
    keys = {RedisClient.key(key, f"team:{name}") for script in scripts for key in script.keys}
    tags = {tag_of(key) for key in keys if key.startswith("seqroute:{")}
    assert len(tags) == 1
    assert tags.pop().startswith("team:")  # never empty: an empty tag would not count


def tag_of(key: str) -> str:
    """What Redis Cluster hashes: between the first brace and the next closing one."""
    return key.partition("{")[2].partition("}")[0]
