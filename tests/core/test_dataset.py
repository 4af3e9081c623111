"""The dataset folder: what is written is read, and what is damaged is named."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from seqroute_ray.core.dataset import (
    ESTIMATOR,
    MANIFEST,
    MANIFEST_FIELDS,
    encode_estimator,
    encode_manifest,
    encode_transitions,
    encode_turns,
    fingerprint,
    read_dataset,
    read_manifest,
    read_transitions,
    sha256,
    shard_files,
)
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.core.storage import Folder
from tests.support import make_estimator, make_layout, make_sessions, make_turns, random_sessions

KEY = "0123456789abcdef"
HARD = np.arange(100, dtype=np.int8) % 4
HBR = HbrConfig(paths="sampled", num_paths=2, num_budgets=3)


def transitions_of(sessions: Sessions) -> Transitions:
    return relabel(sessions, 0.01, HBR)


def write(sessions: Sessions, location: Path) -> dict[str, Any]:
    """A finished dataset of one shard a session; returns its manifest."""
    folder, num_models, shards = Folder.at(location), len(sessions.catalog), []
    features = make_turns(len(sessions.action), num_models)
    for shard in range(sessions.num_sessions):
        part = sessions.take(np.array([shard]))
        turns = features.take(np.arange(*sessions.offsets[shard : shard + 2]))
        contents = (
            encode_turns(part.embedding, turns, HARD[: len(part.action)]),
            encode_transitions([transitions_of(part)]),
        )
        sums = [sha256(content) for content in contents]
        row = {"shard": shard, "key": KEY, "num_turns": len(part.action)}
        shards.append({**row, "turns_sha256": sums[0], "transitions_sha256": sums[1]})
        for name, content in zip(shard_files(shards[-1]), contents, strict=True):
            folder.write(name, content)
    estimator = encode_estimator(make_estimator(num_models))
    folder.write(ESTIMATOR, estimator)
    manifest: dict[str, Any] = {
        "catalog": sessions.catalog.to_json(),
        "embedder": sessions.embedder,
        "layout": {**make_layout(num_models).to_json(), "expected_turns_left": [1.0]},
        "estimator_sha256": sha256(estimator),
        "shards": shards,
    }
    manifest |= dict.fromkeys(set(MANIFEST_FIELDS) - manifest.keys())
    folder.write(MANIFEST, encode_manifest(manifest))
    return manifest


@settings(deadline=None, max_examples=15)  # the disk may be busy
@given(sessions=random_sessions())
def test_a_dataset_survives_the_way_to_disk_and_back(
    sessions: Sessions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    manifest, transitions = write(sessions, folder), transitions_of(sessions)
    dataset = read_dataset(folder)
    for field in fields(Transitions):
        ours, theirs = getattr(transitions, field.name), getattr(dataset.transitions, field.name)
        np.testing.assert_array_equal(theirs, ours, err_msg=field.name)
    num_models = len(sessions.catalog)
    turns = make_turns(len(sessions.action), num_models)
    np.testing.assert_array_equal(dataset.turns.history, turns.history, strict=True)
    hard = [HARD[:length] for length in sessions.num_turns]
    np.testing.assert_array_equal(dataset.difficulty, np.concatenate(hard))
    assert dataset.difficulty.dtype == np.int8
    for name, values in vars(turns.estimates).items():
        np.testing.assert_array_equal(getattr(dataset.turns.estimates, name), values, err_msg=name, strict=True)
    for name, array in make_estimator(num_models).arrays().items():
        np.testing.assert_array_equal(dataset.estimator.arrays()[name], array, err_msg=name, strict=True)
    assert (dataset.catalog, dataset.embedder) == (sessions.catalog, sessions.embedder)
    assert dataset.layout == replace(make_layout(num_models), expected_turns_left=(1.0,))
    assert dataset.manifest == {"format_version": 4, **manifest}


def test_the_same_transitions_are_the_same_bytes_in_one_chunk_or_two() -> None:
    transitions = transitions_of(make_sessions([3, 5]))
    assert encode_transitions([transitions]) == encode_transitions([transitions])
    halves = [transitions.take(rows) for rows in np.array_split(np.arange(len(transitions)), 2)]
    for name, values in vars(transitions).items():
        tables = [pq.read_table(pa.BufferReader(encode_transitions(c)))[name] for c in ([transitions], halves)]
        assert tables[0].to_pylist() == tables[1].to_pylist() == values.tolist()


def test_a_transition_takes_at_most_12_bytes() -> None:
    rng = np.random.default_rng(0)
    transitions = relabel(
        make_sessions(rng.integers(4, 13, size=512).tolist(), num_models=5), 0.02, HbrConfig(paths="sampled")
    )
    assert len(encode_transitions([transitions])) <= 12 * len(transitions)


def test_the_fingerprint_covers_every_file(tmp_path: Path) -> None:
    manifest = write(make_sessions([4, 4]), tmp_path)
    shards, checksum = manifest["shards"], manifest["estimator_sha256"]
    changed = [
        fingerprint(shards, checksum),
        fingerprint(shards[::-1], checksum),
        fingerprint(shards, "0"),
        fingerprint([{**shards[0], "turns_sha256": "0"}, shards[1]], checksum),
        fingerprint([shards[0], {**shards[1], "transitions_sha256": "0"}], checksum),
    ]
    assert len(set(changed)) == 5


def test_turn_rows_of_a_shard_count_its_own_turns(tmp_path: Path) -> None:
    manifest = write(make_sessions([4, 3]), tmp_path)
    assert read_transitions(Folder.at(tmp_path), manifest["shards"][1]).turn_row.min() == 0
    assert read_dataset(tmp_path).transitions.turn_row.max() == 6


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


TURNS, TRANSITIONS = shard_files({"shard": 1, "key": KEY})
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no manifest": (MANIFEST, Path.unlink, "no finished dataset here .* `seqroute relabel`"),
    "half a manifest": (MANIFEST, keep_the_first_half, "not JSON .* relabel again"),
    "deleted shard": (TRANSITIONS, Path.unlink, "cannot be read .* relabel into another folder"),
    "shard without its end": (TRANSITIONS, cut_the_end, "checksum is not the manifest's"),
    "half of a shard": (TRANSITIONS, keep_the_first_half, "checksum is not the manifest's"),
    "empty shard": (TRANSITIONS, lambda path: path.write_bytes(b""), "checksum is not the manifest's"),
    "a row less": (TRANSITIONS, drop_last_row, "checksum is not the manifest's"),
    "no turns": (TURNS, Path.unlink, "cannot be read .* relabel into another folder"),
    "half of the turns": (TURNS, keep_the_first_half, "checksum is not the manifest's"),
    "no estimator": (ESTIMATOR, Path.unlink, "cannot be read .* relabel into another folder"),
    "an estimator without features": (ESTIMATOR, drop_features, "checksum is not the manifest's"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dataset_names_the_file_in_one_line(damage: str, tmp_path: Path) -> None:
    name, harm, words = DAMAGES[damage]
    write(make_sessions([4, 4]), tmp_path)
    read_dataset(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(DataError, match=words) as caught:
        read_dataset(tmp_path)
    assert str(tmp_path / name if damage != "no manifest" else tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format_version": 1}', "dataset format 1, this version reads 4; relabel again"),
        ("[]", "dataset format None, this version reads 4; relabel again"),
        ('{"format_version": 4, "key": ""}', "manifest.json: lacks catalog, configs, .*; relabel into another folder"),
    ],
)
def test_a_manifest_of_another_format_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=words):
        read_manifest(tmp_path)
