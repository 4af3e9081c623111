"""Transitions to batches: worked by hand, shuffled, shared out, and refused when they cannot be."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import (
    MANIFEST,
    Dataset,
    encode_manifest,
    encode_transitions,
    read_dataset,
    read_manifest,
    read_transitions,
    sha256,
    shard_files,
)
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.mdp import NUM_MONEY, affordable, encode_state
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.core.storage import Folder
from seqroute_ray.core.strata import strata
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from seqroute_ray.training.config import TrainConfig
from seqroute_ray.training.reader import (
    ALLOWED,
    BANKRUPT,
    NEXT_ALLOWED,
    NUM_AHEAD,
    BatchSource,
    ShuffledBatches,
    ShuffledRows,
)
from seqroute_ray.training.relabeled import TRANSITION_ROW, RelabeledData
from seqroute_ray.training.row_files import made_once
from seqroute_ray.training.sources import open_dataset
from seqroute_ray.training.stratified import Stratified
from seqroute_ray.training.train import train
from tests.support import make_estimator, make_layout, make_sessions, make_turns
from tests.training.toy_mdp import ToyMdp

CPU = torch.device("cpu")
REFERENCE_USD = 0.02


def make_dataset(lengths: tuple[int, ...] = (3, 4, 5), num_models: int = 3) -> Dataset:
    sessions = make_sessions(lengths, num_models)
    hbr = HbrConfig(paths="sampled", num_paths=4, num_budgets=4)
    return Dataset(
        catalog=sessions.catalog,
        embedder=sessions.embedder,
        layout=make_layout(num_models),
        estimator=make_estimator(num_models),
        difficulty=np.zeros(len(sessions.action), dtype=np.int8),
        turns=make_turns(len(sessions.action), num_models),
        transitions=relabel(sessions, REFERENCE_USD, hbr),
        manifest={},
    )


def test_a_transition_goes_from_its_turn_to_the_next_with_what_is_left() -> None:
    dataset = make_dataset()
    t, turns, layout = dataset.transitions, dataset.turns, dataset.layout
    going = np.flatnonzero(~t.terminated)
    batch = RelabeledData.of(dataset).batch(going)
    before, after = to_usd(t.remaining_nusd[going]), to_usd(t.remaining_nusd[going] - t.cost_nusd[going])
    following = turns.take(t.turn_row[going] + 1)
    state = encode_state(layout, turns.take(t.turn_row[going]), before, t.turn[going])
    np.testing.assert_array_equal(batch[Columns.OBS], state)
    np.testing.assert_array_equal(batch[Columns.NEXT_OBS], encode_state(layout, following, after, t.turn[going] + 1))
    np.testing.assert_array_equal(
        batch[NEXT_ALLOWED], affordable(following.estimates.cost_usd, following.estimates.cost_high_usd, after)
    )
    present = turns.take(t.turn_row[going]).estimates
    np.testing.assert_array_equal(batch[ALLOWED], affordable(present.cost_usd, present.cost_high_usd, before))
    np.testing.assert_array_equal(batch[Columns.ACTIONS], t.action[going])
    np.testing.assert_array_equal(batch[Columns.REWARDS], t.reward[going])
    assert (batch[BANKRUPT] == 0).all()
    # What a transition leaves is what its successor starts with, where the logs judge every turn.
    successor = RelabeledData.of(dataset).batch(going + 1)
    np.testing.assert_array_equal(batch[Columns.NEXT_OBS], successor[Columns.OBS])


def test_a_terminated_row_has_no_future_and_a_bankrupt_one_no_quality() -> None:
    dataset = make_dataset()
    t = dataset.transitions
    batch = RelabeledData.of(dataset).batch(np.arange(len(t)))
    np.testing.assert_array_equal(batch[Columns.TERMINATEDS], t.terminated)
    np.testing.assert_array_equal(batch[BANKRUPT], t.bankrupt.astype(np.float32))
    assert 0 < t.bankrupt.sum() < t.terminated.sum() < len(t)
    assert (batch[Columns.REWARDS][t.bankrupt] == 0).all()
    assert (batch[Columns.REWARDS][~t.bankrupt] > 0).all()
    assert all(np.isfinite(batch[name]).all() for name in (Columns.OBS, Columns.NEXT_OBS))


def test_a_row_of_a_batch_is_the_same_in_any_batch() -> None:
    data = RelabeledData.of(make_dataset())
    whole, rows = data.batch(np.arange(len(data))), np.array([5, 0, 5, 17])
    for name, values in data.batch(rows).items():
        np.testing.assert_array_equal(values, whole[name][rows], err_msg=name)


def of_row(name: str, value: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        getattr(dataset.transitions, name)[3] = value

    return change


def of_turn(name: str, value: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        getattr(dataset.turns.estimates, name)[3, 1] = value

    return change


def forget(dataset: Dataset) -> None:
    dataset.turns.history[2, 0] = np.nan


DAMAGES: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "an action too high": (of_row("action", 3), r"actions must be in \[0, 3\), got 0..3"),
    "an action below 0": (of_row("action", -1), r"actions must be in \[0, 3\), got -1..2"),
    "a turn too far": (of_row("turn_row", 12), r"turn rows must be in \[0, 12\), got 0..13"),
    "an endless reward": (of_row("reward", np.inf), "a reward that is not finite"),
    "no quality": (of_turn("quality", np.nan), "a quality that is not finite"),
    "an endless cost": (of_turn("cost_high_usd", np.inf), "a cost_high_usd that is not finite"),
    "no history": (forget, "a history that is not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_dataset_that_cannot_be_is_refused(damage: str) -> None:
    dataset, (harm, words) = make_dataset(), DAMAGES[damage]
    RelabeledData.of(dataset)
    harm(dataset)
    with pytest.raises(DataError, match=words):
        RelabeledData.of(dataset)


def test_a_dataset_without_transitions_is_refused() -> None:
    dataset = make_dataset()
    nothing = dataset.transitions.take(np.array([], dtype=np.int64))
    with pytest.raises(DataError, match="no transitions; were all turns without a judgement"):
        RelabeledData.of(replace(dataset, transitions=nothing))


def shares_of(data: RelabeledData, num_shards: int, seed: int = 0) -> list[ShuffledRows]:
    reference = ray.put(lambda: data)
    return [ShuffledRows(reference, len(data), shard, num_shards, seed) for shard in range(num_shards)]


def epoch_of(batches: object) -> torch.Tensor:
    """All states of one epoch, [N, state_dim]."""
    return torch.cat([batch[f"{DEFAULT_MODULE_ID}/{Columns.OBS}"] for batch in batches])  # type: ignore[attr-defined]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_learners_share_an_epoch_without_overlap_and_each_epoch_anew() -> None:
    data = RelabeledData.of(make_dataset())
    states = torch.from_numpy(np.unique(data.batch(np.arange(len(data)))[Columns.OBS], axis=0))
    batches = [share.iter_torch_batches(batch_size=1) for share in shares_of(data, num_shards=2)]
    first, second = ([epoch_of(share) for share in batches] for _ in range(2))
    for epoch in (first, second):
        seen = torch.cat(epoch)
        assert [len(share) for share in epoch] == [len(data) // 2] * 2
        assert len(torch.unique(seen, dim=0)) >= len(states) - len(data) % 2
    assert not torch.equal(first[0], second[0])
    again = [epoch_of(share.iter_torch_batches(batch_size=1)) for share in shares_of(data, num_shards=2)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))  # the same seed
    other = epoch_of(shares_of(data, 2, seed=1)[0].iter_torch_batches(batch_size=1))
    assert not torch.equal(first[0], other)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_batches_that_the_data_cannot_fill_are_refused() -> None:
    data = RelabeledData.of(make_dataset())
    share = shares_of(data, num_shards=2)[0]
    assert len(epoch_of(share.iter_torch_batches(batch_size=len(data) // 2))) == len(data) // 2
    with pytest.raises(ConfigError, match=f"needs more than the {len(data)} transitions there are; lower the batch"):
        share.iter_torch_batches(batch_size=len(data) // 2 + 1)


@pytest.mark.ray
def test_rows_on_the_disk_are_the_rows_in_memory(
    toy_dataset: RelabelReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset, whole = read_dataset(toy_dataset.out), RelabeledData.of(read_dataset(toy_dataset.out))
    stratum = strata(dataset.difficulty[dataset.transitions.turn_row], dataset.transitions.bankrupt)
    rows = np.random.default_rng(0).integers(0, len(whole), 3000)
    ours: BatchSource
    for sampling, theirs in (("uniform", whole), ("stratified", Stratified.of(whole, stratum))):
        for memory_mb in (1000.0, 0.01):
            ours = open_dataset(toy_dataset.out, sampling, memory_mb)  # type: ignore[arg-type]
            assert len(ours) == len(theirs)
            copy = pickle.loads(pickle.dumps(ours))
            for name, values in theirs.batch(rows).items():
                np.testing.assert_array_equal(ours.batch(rows)[name], values, err_msg=name)
                np.testing.assert_array_equal(copy.batch(rows)[name], values, err_msg=name)


@pytest.mark.ray
def test_a_number_that_cannot_be_is_found_before_the_first_step(
    toy_dataset: RelabelReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shutil.copytree(toy_dataset.out, tmp_path / "dataset")
    folder = Folder.at(tmp_path / "dataset")
    manifest = read_manifest(tmp_path / "dataset")
    shard = manifest["shards"][1]
    transitions = read_transitions(folder, shard)
    reward = transitions.reward.copy()
    reward[7] = np.nan
    damaged = encode_transitions([replace(transitions, reward=reward)])
    shard["transitions_sha256"], manifest["data_fingerprint"] = sha256(damaged), "damaged"
    folder.write(shard_files(shard)[1], damaged)
    folder.write(MANIFEST, encode_manifest(manifest))
    for _ in range(2):  # no half-made file passes the second time
        with pytest.raises(DataError, match="the dataset holds a reward that is not finite; relabel again"):
            train(TrainConfig(dataset=tmp_path / "dataset", out=tmp_path / "policy"))


@pytest.mark.ray
def test_history_noise_falls_on_what_a_session_was_about_and_on_both_states_alike(toy_dataset: RelabelReport) -> None:
    source = RelabeledData.open(toy_dataset.out, 1000.0)
    plain, noisy, again = (
        next(iter(ShuffledBatches(ShuffledRows(None, len(source), 0, 1, 5, noise), source, 4096, CPU, 3)))
        for noise in (0.0, 0.7, 0.7)
    )
    differences = []
    for name in (Columns.OBS, Columns.NEXT_OBS):
        column = f"{DEFAULT_MODULE_ID}/{name}"
        torch.testing.assert_close(noisy[column], again[column], rtol=0, atol=0)
        differences.append((noisy[column] - plain[column]).numpy())
    np.testing.assert_allclose(differences[0], differences[1], atol=1e-5)
    about = slice(NUM_MONEY, source.layout.num_context)
    assert differences[0][:, about].std() == pytest.approx(0.7, rel=0.05)
    differences[0][:, about] = 0
    assert not differences[0].any()


@pytest.mark.ray
@pytest.mark.parametrize("num_ahead", [1, 3])
def test_batches_go_on_from_any_place_however_many_are_made_ahead(
    toy_dataset: RelabelReport, num_ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RelabeledData.open(toy_dataset.out, 1000.0)
    rows = ShuffledRows(None, len(source), 1, 2, 5, 0.3)
    per_epoch = len(source) // 2 // 4096
    batches = ShuffledBatches(rows, source, 4096, CPU, 0)
    whole = [batch for _ in range(2) for batch in batches]
    assert len(whole) == 2 * per_epoch
    monkeypatch.setitem(NUM_AHEAD, "cpu", num_ahead)
    for first in (per_epoch - 1, per_epoch, per_epoch + 2):
        later = ShuffledBatches(rows, source, 4096, CPU, first)
        resumed = [batch for _ in range(2) for batch in later]
        for theirs, ours in zip(whole[first:], resumed, strict=False):
            for name, values in theirs.items():
                torch.testing.assert_close(ours[name], values, rtol=0, atol=0)


EPOCH_PART = """
import sys, torch
from pathlib import Path
from seqroute_ray.training.reader import ShuffledBatches, ShuffledRows
from seqroute_ray.training.relabeled import RelabeledData
source = RelabeledData.open(sys.argv[1], memory_mb=8.0)
rows = ShuffledRows(None, len(source), 0, 1, 0, 0.3)
for _, batch in zip(range(250), ShuffledBatches(rows, source, 2048, torch.device("cpu"), 0)):
    pass
peak_kb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(len(source), peak_kb)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    measured = []
    for num_sessions in (512, 2048):
        sessions, out = tmp_path / f"{num_sessions}.parquet", tmp_path / f"dataset-{num_sessions}"
        write_sessions(ToyMdp(num_sessions, seed=0).sessions(), sessions)
        hbr = HbrConfig(paths="sampled", num_paths=8, num_budgets=30, min_budget=0.5, max_budget=2.0)
        relabel_sessions(RelabelConfig(sessions=sessions, out=out, hbr=hbr, runner="local"))
        done = subprocess.run(
            [sys.executable, "-c", EPOCH_PART, str(out)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        measured.append([int(x) for x in done.stdout.split()[-2:]])
    (few, peak_kb), (many, larger_kb) = measured
    assert many > 3.9 * few
    assert (many - few) * TRANSITION_ROW.itemsize > 0.12 * peak_kb * 1024  # in memory they would be too much
    assert larger_kb < 1.1 * peak_kb


def test_row_files_of_another_user_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(ConfigError, match=r"seqroute-4711 belongs to another user; set TMPDIR to a folder of your own"):
        made_once("key", lambda _folder: pytest.fail("written"))
