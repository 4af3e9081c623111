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
    ESTIMATOR,
    MANIFEST,
    SHARDS,
    TURNS,
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
from tests.support import make_estimator, make_layout, make_sessions, make_turns, random_sessions

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
        part = transitions.take(np.arange(len(transitions))[rows])
        sha256 = write_shard(part, folder / SHARDS / name)
        shards.append({"name": name, "num_transitions": len(part), "sha256": sha256})
    write_turns(folder, sessions.embedding, make_turns(len(sessions.action), num_models))
    write_estimator(folder, make_estimator(num_models))
    manifest = {
        "catalog": sessions.catalog.to_json(),
        "embedder": sessions.embedder,
        "layout": {**make_layout(num_models).to_json(), "expected_turns_left": [1.0]},
        "shards": shards,
    }
    write_manifest(folder, manifest)
    return transitions, manifest


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
    num_models = len(sessions.catalog)
    turns = make_turns(len(sessions.action), num_models)
    np.testing.assert_array_equal(dataset.turns.history, turns.history, strict=True)
    for name, values in vars(turns.estimates).items():
        np.testing.assert_array_equal(getattr(dataset.turns.estimates, name), values, err_msg=name, strict=True)
    for name, array in make_estimator(num_models).arrays().items():
        np.testing.assert_array_equal(dataset.estimator.arrays()[name], array, err_msg=name, strict=True)
    assert (dataset.catalog, dataset.embedder) == (sessions.catalog, sessions.embedder)
    assert dataset.layout == replace(make_layout(num_models), expected_turns_left=(1.0,))
    assert dataset.manifest == {"format_version": 2, **manifest}


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


def drop_features(path: Path) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith("features.")}
    np.savez(path, **arrays)


SHARD = f"{SHARDS}/{SHARD_NAMES[1]}"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no manifest": (MANIFEST, Path.unlink, "no finished dataset here .* `seqroute relabel`"),
    "deleted shard": (SHARD, Path.unlink, "cannot be read .* relabel again"),
    "shard without its end": (SHARD, cut_the_end, "cannot be read .* relabel again"),
    "half of a shard": (SHARD, keep_the_first_half, "cannot be read .* relabel again"),
    "empty shard": (SHARD, lambda path: path.write_bytes(b""), "cannot be read .* relabel again"),
    "no turns": (TURNS, Path.unlink, "cannot be read .* relabel again"),
    "half of the turns": (TURNS, keep_the_first_half, "cannot be read .* relabel again"),
    "no estimator": (ESTIMATOR, Path.unlink, "cannot be read .* relabel again"),
    "an estimator without features": (ESTIMATOR, drop_features, "cannot be read .* relabel again"),
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
    write_manifest(tmp_path, {"format_version": 1})
    with pytest.raises(DataError, match="dataset format 1, this version reads 2"):
        read_manifest(tmp_path)
