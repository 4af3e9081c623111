"""Relabeling: the same dataset whoever does the work, whatever is killed, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.dataset import MANIFEST, read_dataset, read_manifest
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.fitting import EstimatorConfig, cross_fitted, fit_estimator, observe
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel
from seqroute_ray.core.mdp import running_mean
from seqroute_ray.core.sessions import Sessions, to_table, write_sessions
from seqroute_ray.core.storage import Folder
from seqroute_ray.core.strata import DIFFICULTIES
from seqroute_ray.data import relabel as relabeling
from seqroute_ray.data import runners, shards, tries
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from seqroute_ray.data.runners import Row, RunnerName, Task
from seqroute_ray.data.session_file import SessionFile
from seqroute_ray.data.shards import Shards
from seqroute_ray.data.tries import Done, crashing_sessions
from tests.support import make_sessions

ROOT = Path(__file__).parent.parent.parent
HBR = HbrConfig(paths="sampled", num_paths=2, num_budgets=2)
NUM_SHARDS, PER_SHARD = 8, 30


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    rng = np.random.default_rng(0)
    return make_sessions(rng.integers(1, 6, size=NUM_SHARDS * PER_SHARD).tolist(), num_models=3)


@pytest.fixture(scope="module")
def source(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session file of NUM_SHARDS row groups."""
    path = tmp_path_factory.mktemp("sessions") / "s.parquet"
    pq.write_table(to_table(sessions), path, row_group_size=PER_SHARD)
    return path


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of the dataset, made in one go by one process."""
    out = tmp_path_factory.mktemp("reference") / "d"
    relabel_sessions(RelabelConfig(sessions=source, out=out, hbr=HBR, runner="local"))
    return contents(out)


def contents(out: Path | str) -> dict[str, bytes]:
    folder = Folder.at(out)
    return {name: folder.read(name) for name in folder.names()}


def part(dataset: Path, table: str, shard: int) -> Path:
    """The file of a shard."""
    (path,) = (dataset / table).glob(f"part-{shard:05d}-*.parquet")
    return path


def run_on(runner: RunnerName, source: Path | str, out: Path | str, **fields: Any) -> RelabelReport:
    return relabel_sessions(RelabelConfig(sessions=source, out=out, hbr=HBR, runner=runner, **fields))


def test_shards_hold_what_the_kernel_gives_for_all_sessions_at_once(
    sessions: Sessions, source: Path, tmp_path: Path
) -> None:
    seen: list[Done] = []
    config = RelabelConfig(sessions=source, out=tmp_path / "d", hbr=HBR, runner="local")
    report = relabel_sessions(config, seen.append)
    dataset = read_dataset(tmp_path / "d")
    whole = relabel(sessions, dataset.layout.reference_cost_usd, HBR)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(dataset.transitions, name), values, err_msg=name)
    assert [done.shards for done in seen] == list(range(1, NUM_SHARDS + 1))
    assert seen[-1] == Done(NUM_SHARDS, NUM_SHARDS, sessions.num_sessions, sessions.num_sessions, len(whole))
    assert report.num_transitions == len(whole)
    assert report.num_bankrupt == whole.bankrupt.sum()


def test_the_turn_table_is_cross_fitted_and_the_stored_estimator_is_not(
    sessions: Sessions, source: Path, tmp_path: Path
) -> None:
    run_on("local", source, tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    estimates, summary = cross_fitted(sessions, EstimatorConfig())
    for name, values in vars(estimates).items():
        np.testing.assert_allclose(getattr(dataset.turns.estimates, name), values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(dataset.turns.history, running_mean(summary, sessions.offsets), rtol=1e-5, atol=1e-6)
    whole = fit_estimator(observe(sessions), EstimatorConfig(), sessions.catalog.names)
    stored, fitted = (model.predict(sessions.queries, sessions.catalog) for model in (dataset.estimator, whole))
    np.testing.assert_allclose(stored.quality, fitted.quality, rtol=1e-5)
    np.testing.assert_allclose(stored.cost_high_usd, fitted.cost_high_usd, rtol=1e-5)
    assert not np.allclose(stored.quality, estimates.quality, rtol=1e-5)
    assert dataset.layout.summary_width == dataset.estimator.features.summary_width == summary.shape[1]


def test_the_estimator_is_fitted_on_a_sample_that_does_not_depend_on_the_row_groups(
    sessions: Sessions, source: Path, tmp_path: Path
) -> None:
    write_sessions(sessions, tmp_path / "one-group.parquet")
    for number, path in enumerate((source, tmp_path / "one-group.parquet")):
        run_on("local", path, tmp_path / str(number), max_fit_sessions=100)
    run_on("local", source, tmp_path / "whole")
    sampled, same, whole = (read_manifest(tmp_path / name)["estimator_sha256"] for name in ("0", "1", "whole"))
    assert sampled == same != whole


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("num_cpus", "max_blocks"), [(1, 2000), (2, 2000), (4, 3)])
def test_ray_writes_the_same_bytes_on_any_number_of_cpus_and_blocks(
    num_cpus: int,
    max_blocks: int,
    source: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(runners, "MAX_BLOCKS", max_blocks)
    options = ray.data.DataContext.get_current().execution_options
    monkeypatch.setattr(options, "resource_limits", ray.data.ExecutionResources(cpu=num_cpus))
    report = run_on("ray", source, tmp_path / "d")
    assert contents(tmp_path / "d") == reference
    assert 1 <= report.num_workers <= NUM_SHARDS


@pytest.mark.ray
@pytest.mark.parametrize("shards", [NUM_SHARDS // 4, NUM_SHARDS // 2, NUM_SHARDS * 3 // 4])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_killed_driver_goes_on_where_it_was(
    shards: int, place: str, source: Path, reference: dict[str, bytes], tmp_path: Path, ray_cluster: str, s3_bucket: str
) -> None:
    out = str(tmp_path / "d") if place == "disk" else f"{s3_bucket}/{tmp_path.name}"
    command = [sys.executable, "-m", "tests.data.kill_relabel", str(source), out, str(shards)]
    killed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": ray_cluster}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with pytest.raises(DataError, match="no finished dataset here"):
        read_dataset(out)
    report = run_on("ray", source, out)
    assert shards <= report.num_resumed <= NUM_SHARDS  # workers may have finished more before they heard of it
    assert contents(out) == reference


def dies_in_the_kernel(marker: Path) -> type[Shards]:
    class Dying(Shards):
        def write(self, task: Task) -> Row:
            if task["shard"] == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(task)

    return Dying


def dies_before_the_receipt(marker: Path) -> type[Shards]:
    class DyingFolder(Folder):
        def write(self, name: str, content: bytes) -> None:
            if name.startswith("receipts/part-00003") and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            super().write(name, content)

    class Dying(Shards):
        def write(self, task: Task) -> Row:
            return Shards.write(replace(self, folder=DyingFolder(self.folder.location)), task)

    return Dying


def dies_after_the_receipt(marker: Path) -> type[Shards]:
    class Dying(Shards):
        def write(self, task: Task) -> Row:
            row = super().write(task)
            if task["shard"] == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return row

    return Dying


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("dying", [dies_in_the_kernel, dies_before_the_receipt, dies_after_the_receipt])
def test_a_killed_worker_costs_nothing_but_time(
    dying: Callable[[Path], type[Shards]],
    source: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relabeling, "Shards", dying(tmp_path / "marker"))
    report = run_on("ray", source, tmp_path / "d")
    assert (tmp_path / "marker").exists()
    assert contents(tmp_path / "d") == reference
    assert report.num_resumed == (1 if dying is dies_after_the_receipt else 0)


def kills_every_worker(session_id: str) -> type[Shards]:
    class Poisoned(Shards):
        def write(self, task: Task) -> Row:
            if session_id in self.sessions.read(task["shard"]).session_id and session_id not in task.get(
                "left_out", []
            ):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(task)

        def probe(self, task: Task) -> Row:
            if self.sessions.read(task["shard"]).session_id[task["session"]] == session_id:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().probe(task)

    return Poisoned


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_session_that_kills_its_worker_is_named_and_left_out_only_if_allowed(
    sessions: Sessions, source: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relabeling, "Shards", kills_every_worker("s100"))
    with pytest.raises(DataError, match=rf"1 of {sessions.num_sessions} sessions crash their worker \(s100\)"):
        run_on("ray", source, tmp_path / "d")
    assert not (tmp_path / "d" / MANIFEST).exists()
    report = run_on("ray", source, tmp_path / "d", max_bad_share=0.01)
    assert (report.num_resumed, report.num_quarantined) == (NUM_SHARDS - 1, 1)
    manifest = read_manifest(tmp_path / "d")
    assert manifest["quarantined"] == ["s100"]
    assert manifest["num_sessions"] == sessions.num_sessions - 1
    ours, theirs = contents(tmp_path / "d"), reference
    assert {name for name in ours if ours[name] != theirs[name]} == {
        MANIFEST,
        *(name for name in theirs if "part-00003" in name),
    }


def test_an_error_in_the_kernel_is_a_bad_session_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(sessions: Sessions, *rest: Any) -> Iterator[Transitions]:
        if "s7" in sessions.session_id:
            raise ZeroDivisionError
        yield relabel(sessions, *rest)

    monkeypatch.setattr(shards, "relabel_in_chunks", fragile)
    with pytest.raises(DataError, match=r"\(s7\); mend them, or raise max_bad_share 0"):
        run_on("local", source, tmp_path / "d")
    assert run_on("local", source, tmp_path / "d", max_bad_share=0.01).num_quarantined == 1


def test_a_finished_dataset_is_found_again_and_never_overwritten(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    first = run_on("local", source, tmp_path / "d")
    again = run_on("local", source, tmp_path / "d")
    assert again == replace(first, num_resumed=NUM_SHARDS, num_workers=0)
    other = RelabelConfig(sessions=source, out=tmp_path / "d", hbr=replace(HBR, seed=1), runner="local")
    with pytest.raises(DataError, match="holds a finished dataset of other settings; choose another folder"):
        relabel_sessions(other)
    assert contents(tmp_path / "d") == reference


def test_shards_of_an_unfinished_run_of_other_settings_are_made_anew(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    def stop(done: Done) -> None:
        if done.shards == 3:
            raise KeyboardInterrupt

    other = RelabelConfig(sessions=source, out=tmp_path / "d", hbr=replace(HBR, seed=1), runner="local")
    with pytest.raises(KeyboardInterrupt):
        relabel_sessions(other, stop)
    assert run_on("local", source, tmp_path / "d").num_resumed == 0
    assert contents(tmp_path / "d") == reference


@pytest.mark.parametrize("harm", [b"", b"PAR1 damaged"])
def test_a_damaged_shard_of_an_unfinished_run_is_made_anew(
    harm: bytes, source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    def stop(done: Done) -> None:
        if done.shards == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relabel_sessions(RelabelConfig(sessions=source, out=tmp_path / "d", hbr=HBR, runner="local"), stop)
    part(tmp_path / "d", "turns", 1).write_bytes(harm)
    assert run_on("local", source, tmp_path / "d").num_resumed == 2
    assert contents(tmp_path / "d") == reference


def test_only_the_fit_part_is_used(sessions: Sessions, tmp_path: Path) -> None:
    part = np.where(np.arange(sessions.num_sessions) % 2, "fit", "tune")
    mixed = replace(sessions, part=part)
    pq.write_table(to_table(mixed), tmp_path / "mixed.parquet", row_group_size=PER_SHARD)
    pq.write_table(to_table(mixed.take(part == "fit")), tmp_path / "fit.parquet", row_group_size=PER_SHARD // 2)
    reports = [run_on("local", tmp_path / f"{name}.parquet", tmp_path / name) for name in ("mixed", "fit")]
    assert reports[0].data_fingerprint == reports[1].data_fingerprint
    write_sessions(mixed.take(part == "tune"), tmp_path / "tune.parquet")
    with pytest.raises(DataError, match=r"tune.parquet: no session of part 'fit' here, only of tune"):
        run_on("local", tmp_path / "tune.parquet", tmp_path / "tune")


def test_other_paths_than_the_logged_need_a_session_with_every_outcome(sessions: Sessions, tmp_path: Path) -> None:
    few = sessions.take(np.arange(200))
    few.outcome_cost_nusd[:, 1] = -1
    write_sessions(few, tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"needs sessions with every model's outcome .* use paths=logged"):
        run_on("local", tmp_path / "s.parquet", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_fit_sessions": 0}, "max_fit_sessions must be at least 1, got 0"),
        ({"max_bad_share": 1.0}, "max_bad_share must be in [0, 1), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RelabelConfig(sessions="s", out="d", **fields)
    assert str(caught.value) == words


@pytest.mark.ray
def test_the_job_is_the_command(source: Path, tmp_path: Path, ray_cluster: str) -> None:
    (tmp_path / "s.parquet").write_bytes(source.read_bytes())
    command = [sys.executable, str(ROOT / "jobs" / "relabel.py"), "--sessions", "s.parquet", "--out", "d"]
    env = {**os.environ, "RAY_ADDRESS": ray_cluster}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_shards"] == NUM_SHARDS
    assert len(read_dataset(tmp_path / "d").transitions)  # all of it is here, not where the workers stand
    refused = subprocess.run(
        [*command, "--hbr.num-budgets", "0"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")


def test_the_manifest_counts_strata_and_their_weights_undo_equal_draws(source: Path, tmp_path: Path) -> None:
    run_on("local", source, tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    rows = dataset.manifest["strata"]
    t = dataset.transitions
    hard = np.array(DIFFICULTIES)[dataset.difficulty[t.turn_row]]
    for row in rows:
        assert row["num_transitions"] == ((hard == row["difficulty"]) & (t.bankrupt == row["bankrupt"])).sum() > 0
    assert np.mean([row["weight"] for row in rows]) == pytest.approx(1)
    assert sum(row["num_transitions"] for row in rows) == len(t)


def test_a_folder_that_cannot_be_written_is_named_in_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as caught:
        run_on("local", source, tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: cannot be written (")
    assert "\n" not in str(caught.value)


def test_a_full_disk_ends_the_run_at_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, tried = Folder.write, list[str]()

    def full(self: Folder, name: str, content: bytes) -> None:
        if name.startswith("turns"):
            tried.append(name)
            raise OSError("No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(DataError, match=r"/d: cannot be written \(No space left on device\); make room and run again"):
        run_on("local", source, tmp_path / "d")
    assert len(tried) == 1


def test_a_finished_dataset_that_lost_a_file_is_not_found(source: Path, tmp_path: Path) -> None:
    run_on("local", source, tmp_path / "d")
    part(tmp_path / "d", "transitions", 2).unlink()
    with pytest.raises(DataError, match=r"lacks transitions/part-00002-.*.parquet; relabel into another folder"):
        run_on("local", source, tmp_path / "d")


@pytest.mark.parametrize("shards", [1, NUM_SHARDS])
def test_a_run_of_other_settings_that_finishes_second_is_refused_and_spoils_nothing(
    shards: int, source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    def overtaken(done: Done) -> None:
        if done.shards == shards:
            run_on("local", source, tmp_path / "d")

    second = RelabelConfig(sessions=source, out=tmp_path / "d", hbr=replace(HBR, seed=1), runner="local")
    with pytest.raises(DataError, match="holds a finished dataset of other settings"):
        relabel_sessions(second, overtaken)
    assert read_dataset(tmp_path / "d").manifest["data_fingerprint"] in reference[MANIFEST].decode()
    made = contents(tmp_path / "d")
    assert {name: made[name] for name in reference} == reference


@pytest.mark.parametrize("runner", ["ray", "local"])
def test_no_tasks_are_no_work(runner: RunnerName) -> None:
    assert list(runners.run(runner, [], lambda task: task)) == []


def test_a_shard_of_bad_sessions_only_is_left_out_whole(
    sessions: Sessions, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = set(sessions.session_id[-PER_SHARD:].tolist())

    def fragile(part: Sessions, *rest: Any) -> Iterator[Transitions]:
        if last & set(part.session_id.tolist()):
            raise ZeroDivisionError
        yield relabel(part, *rest)

    monkeypatch.setattr(shards, "relabel_in_chunks", fragile)
    report = run_on("local", source, tmp_path / "d", max_bad_share=0.2)
    assert (report.num_shards, report.num_quarantined) == (NUM_SHARDS - 1, PER_SHARD)
    assert len(read_dataset(tmp_path / "d").transitions) == report.num_transitions


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_session_that_kills_its_worker_takes_no_other_with_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more sessions to try than Ray tasks at once."""
    monkeypatch.setattr(tries, "MAX_BLOCKS", 8)
    monkeypatch.setattr(runners, "MAX_BLOCKS", 8)

    def probe(task: Task) -> Row:
        if task["session"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    assert crashing_sessions(probe, "ray", [{"shard": 1}], SessionFile.scan(source)) == {1: [f"s{PER_SHARD + 9}"]}


def test_a_session_is_bad_only_if_it_fails_every_time(source: Path) -> None:
    tried: list[int] = []

    def probe(task: Task) -> Row:
        tried.append(task["session"])
        if task["session"] == 2 or (task["session"] == 5 and tried.count(5) == 1):
            raise MemoryError
        return task

    assert crashing_sessions(probe, "local", [{"shard": 0}], SessionFile.scan(source)) == {0: ["s2"]}
    assert (tried.count(0), tried.count(5), tried.count(2)) == (1, 2, 3)


def test_a_file_of_no_sessions_is_refused(sessions: Sessions, tmp_path: Path) -> None:
    write_sessions(sessions.take(np.arange(0)), tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"s.parquet: the session file has 0 sessions"):
        run_on("local", tmp_path / "s.parquet", tmp_path / "d")


def test_an_object_store_that_does_not_answer_is_named_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for location in (f"{s3_bucket}/nobody", s3_bucket.replace("bucket", "nobody") + "/d"):
        with pytest.raises(DataError, match=r"cannot be (reached|written)") as caught:
            run_on("local", source, location)
        assert location in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"cannot be (reached|opened)"):
        run_on("local", f"{s3_bucket}/s.parquet", tmp_path / "d")


def test_files_of_others_in_the_folder_are_left_alone(
    source: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    theirs = {"turns/a.csv": b"1", "transitions/notes.txt": b"2", "receipts/part-1.json": b"3", "x.parquet": b"4"}
    for name, content in theirs.items():
        Folder.at(tmp_path / "d").write(name, content)
    stale = ("turns/part-00099-0123abcd.parquet", "receipts/part-00099-0123abcd.json")
    for name in stale:
        Folder.at(tmp_path / "d").write(name, b"of an earlier run")
    run_on("local", source, tmp_path / "d")
    assert contents(tmp_path / "d") == reference | theirs
