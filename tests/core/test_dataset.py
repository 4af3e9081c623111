"""The dataset folder: what is written is read, and what is damaged is named."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from seqroute_ray.core.dataset import (
    MANIFEST,
    SHARDS,
    read_dataset,
    read_manifest,
    read_shards,
    write_estimator,
    write_manifest,
    write_shard,
    write_turns,
)
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel
from seqroute_ray.core.sessions import Sessions
from tests.support import make_estimator, make_layout, make_sessions, random_sessions

SHARD_NAMES = ("part-00000.parquet", "part-00001.parquet")


def transitions_of(sessions: Sessions) -> Transitions:
    return relabel(sessions, 0, 0.01, HbrConfig(paths="sampled", num_paths=2, num_budgets=3))


def write(sessions: Sessions, folder: Path) -> tuple[Transitions, dict[str, Any]]:
    """A finished dataset of two shards; returns its transitions and manifest."""
    (folder / SHARDS).mkdir(parents=True)
    transitions, num_models = transitions_of(sessions), len(sessions.catalog)
    middle = len(transitions) // 2
    shards = []
    for name, rows in zip(SHARD_NAMES, (slice(middle), slice(middle, None)), strict=True):
        part = Transitions(*(getattr(transitions, field.name)[rows] for field in fields(Transitions)))
        sha256 = write_shard(part, folder / SHARDS / name)
        shards.append({"name": name, "num_transitions": len(part), "sha256": sha256})
    features, cost_high_usd = turn_columns(sessions)
    write_turns(folder, sessions.embedding, features, cost_high_usd)
    write_estimator(folder, make_estimator(num_models))
    manifest = {
        "catalog": sessions.catalog.to_json(),
        "embedder": sessions.embedder,
        "layout": {**make_layout(num_models).to_json(), "expected_turns_left": [1.0]},
        "shards": shards,
    }
    write_manifest(folder, manifest)
    return transitions, manifest


def turn_columns(sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
    """Features and high costs of the sessions' turns."""
    rng, num_turns, num_models = np.random.default_rng(0), len(sessions.action), len(sessions.catalog)
    return rng.random((num_turns, 6 * num_models), dtype=np.float32), rng.random((num_turns, num_models), np.float32)


@settings(deadline=None, max_examples=15)  # the disk may be busy
@given(sessions=random_sessions())
def test_a_dataset_survives_the_way_to_disk_and_back(
    sessions: Sessions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    transitions, manifest = write(sessions, folder)
    dataset = read_dataset(folder)
    for field in fields(Transitions):
        ours, theirs = getattr(transitions, field.name), getattr(dataset.transitions, field.name)
        np.testing.assert_array_equal(theirs, ours, err_msg=field.name)
    features, cost_high_usd = turn_columns(sessions)
    np.testing.assert_array_equal(dataset.features, features, strict=True)
    np.testing.assert_array_equal(dataset.cost_high_usd, cost_high_usd, strict=True)
    num_models = len(sessions.catalog)
    for name, array in make_estimator(num_models).arrays().items():
        np.testing.assert_array_equal(dataset.estimator.arrays()[name], array, err_msg=name, strict=True)
    assert (dataset.catalog, dataset.embedder) == (sessions.catalog, sessions.embedder)
    assert dataset.layout == replace(make_layout(num_models), expected_turns_left=(1.0,))
    assert dataset.manifest == {"format_version": 1, **manifest}


def test_the_same_transitions_are_the_same_bytes_and_leave_no_temporary_file(tmp_path: Path) -> None:
    transitions = transitions_of(make_sessions([3, 5]))
    first, second = (write_shard(transitions, tmp_path / name) for name in SHARD_NAMES)
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == list(SHARD_NAMES)


def test_shards_are_read_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    transitions, manifest = write(make_sessions([4, 4]), tmp_path)
    turned = read_shards(tmp_path, manifest["shards"][::-1])
    middle = manifest["shards"][0]["num_transitions"]
    np.testing.assert_array_equal(turned.turn_row, np.roll(transitions.turn_row, -middle))


def drop_last_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)


def cut_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def keep_the_first_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SHARD = f"{SHARDS}/{SHARD_NAMES[1]}"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no manifest": (MANIFEST, Path.unlink, "no finished dataset here .* `seqroute relabel`"),
    "deleted shard": (SHARD, Path.unlink, "cannot be read .* relabel again"),
    "shard without its end": (SHARD, cut_the_end, "cannot be read .* relabel again"),
    "half of a shard": (SHARD, keep_the_first_half, "cannot be read .* relabel again"),
    "empty shard": (SHARD, lambda path: path.write_bytes(b""), "cannot be read .* relabel again"),
    "a row less": (SHARD, drop_last_row, "its checksum is not the manifest's; relabel again"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dataset_names_the_file_in_one_line(damage: str, tmp_path: Path) -> None:
    name, harm, words = DAMAGES[damage]
    write(make_sessions([4, 4]), tmp_path)
    read_dataset(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(DataError, match=words) as caught:
        read_dataset(tmp_path)
    assert str(tmp_path / name if name != MANIFEST else tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_of_another_format_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"format_version": 2})
    with pytest.raises(DataError, match="dataset format 2, this version reads 1"):
        read_manifest(tmp_path)
