"""Importing file by file and range by range: the same sessions whoever does the work and whatever is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.errors import ConfigError, DataError, StoppedError
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.core.storage import Folder, Location
from seqroute_ray.data import importer
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.importing import assemble, staging, whole
from seqroute_ray.data.importing.ranges import Ranges
from seqroute_ray.data.importing.staging import Staging
from seqroute_ray.data.importing.whole import range_starts
from seqroute_ray.data.runners import Row, RunnerName, Task
from seqroute_ray.data.sample import DEFAULT_POOL
from tests.data.test_importer import row, write_lines

ROOT = Path(__file__).parent.parent.parent
NUM_FILES, NUM_SESSIONS = 4, 40
RANGE_BYTES = 4096  # several ranges for so few sessions
SECRET = "the prompt"


def config_of(logs: Path | str, out: Path | str, runner: RunnerName = "ray", **fields: Any) -> ImportConfig:
    return ImportConfig(logs=(logs,), out=out, runner=runner, **{"max_bad_share": 0.1, **fields})


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of logs; sessions are spread over all files, the last turn of one is bad."""
    rng = np.random.default_rng(0)
    rows = [
        row(f"s{session}", turn, text=f"{SECRET} {session} {turn}", part="fit", group_id=f"g{session // 2}")
        for session in range(NUM_SESSIONS)
        for turn in range(int(rng.integers(1, 6)))
    ]
    rows[-1]["quality"] = 2
    folder = tmp_path_factory.mktemp("logs")
    for number, some in enumerate(np.array_split(rng.permutation(len(rows)), NUM_FILES)):
        write_lines(folder / f"{number}.jsonl", [rows[at] for at in some])
    return folder


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "RANGE_BYTES", RANGE_BYTES)


@pytest.fixture(scope="module")
def reference(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of an import in one process, with one range."""
    out = tmp_path_factory.mktemp("reference") / "s.parquet"
    report = import_logs(config_of(logs, out, runner="local"))
    assert (report.num_files, report.num_sessions, report.num_resumed) == (NUM_FILES, NUM_SESSIONS - 1, 0)
    return written(out)


def written(out: Path | str) -> dict[str, bytes]:
    """What an import left, by the end of its name."""
    folder = Folder.at(str(out).rpartition("/")[0])
    while True:
        try:
            return {name: folder.read(name) for name in folder.names()}
        except FileNotFoundError:  # a worker outlives its killed driver by a moment and renames what it was writing
            continue


@pytest.mark.parametrize("run_rows", [3, 100_000])
@pytest.mark.parametrize("range_bytes", [1, RANGE_BYTES, 1 << 27])
def test_neither_runs_nor_ranges_leave_a_trace(
    run_rows: int,
    range_bytes: int,
    logs: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "RUN_ROWS", run_rows)
    monkeypatch.setattr(whole, "RANGE_BYTES", range_bytes)
    import_logs(config_of(logs, tmp_path / "s.parquet", runner="local"))
    assert written(tmp_path / "s.parquet") == reference


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_ray_writes_the_same_bytes_from_and_to_disks_and_buckets(
    place: str, logs: Path, reference: dict[str, bytes], tmp_path: Path, s3_bucket: str
) -> None:
    source, out = str(logs), str(tmp_path / "s.parquet")
    if place == "bucket":
        source, out = f"{s3_bucket}/logs-{tmp_path.name}", f"{s3_bucket}/{tmp_path.name}/s.parquet"
        for path in logs.iterdir():
            Folder.at(source).write(path.name, path.read_bytes())
    report = import_logs(config_of(source, out))
    assert report.num_workers >= 1
    ours = written(out)
    assert ours["s.parquet"] == reference["s.parquet"]
    quarantine = ours.pop("s.parquet.quarantine.jsonl").decode().replace(source, str(logs))
    assert quarantine.encode() == reference["s.parquet.quarantine.jsonl"]
    assert ours.keys() == {"s.parquet"}


@pytest.mark.ray
@pytest.mark.parametrize(("step", "number"), [("files", 1), ("files", 3), ("ranges", 1), ("ranges", 3)])
def test_a_killed_import_goes_on_where_it_was(
    step: str, number: int, logs: Path, reference: dict[str, bytes], tmp_path: Path, ray_cluster: str
) -> None:
    out = tmp_path / "s.parquet"
    command = [sys.executable, "-m", "tests.data.kill_import", str(logs), str(out), step, str(number)]
    killed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": ray_cluster}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = written(out)
    assert left
    assert "s.parquet" not in left
    report = import_logs(config_of(logs, out))
    assert report.num_resumed >= number + (NUM_FILES if step == "ranges" else 0)
    assert written(out) == reference


def interrupt(what: str, done: int, _total: int) -> None:
    if (what, done) == ("ranges", 2):
        raise KeyboardInterrupt


def test_what_an_interrupted_import_leaves_has_no_text_and_with_drop_text_no_id(
    logs: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    config = config_of(logs, tmp_path / "s.parquet", runner="local", drop_text=True)
    with pytest.raises(KeyboardInterrupt):
        import_logs(config, interrupt)
    runs = [pq.read_table(path) for path in tmp_path.rglob("*.parquet")]
    assert runs
    assert all(SECRET not in str(table.to_pydict()) and "'s1'" not in str(table.to_pydict()) for table in runs)
    other = replace(config, drop_text=False)
    assert import_logs(other).num_resumed == 0  # other settings: nothing of it is taken
    assert written(tmp_path / "s.parquet") == reference


@pytest.mark.parametrize("harm", [b"", b"PAR1 damaged"])
def test_damaged_leavings_are_made_anew(harm: bytes, logs: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    config = config_of(logs, tmp_path / "s.parquet", runner="local")
    with pytest.raises(KeyboardInterrupt):
        import_logs(config, interrupt)
    [run] = tmp_path.rglob("seqroute/00001-*.parquet")
    run.write_bytes(harm)
    assert import_logs(config).num_resumed == NUM_FILES - 1 + 2
    assert written(tmp_path / "s.parquet") == reference


def test_changed_logs_are_read_anew(logs: Path, tmp_path: Path) -> None:
    copies = tmp_path / "logs"
    copies.mkdir()
    for path in logs.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    config = config_of(copies, tmp_path / "out" / "s.parquet", runner="local")
    with pytest.raises(KeyboardInterrupt):
        import_logs(config, interrupt)
    write_lines(copies / "4.jsonl", [row("new", 0)])
    assert import_logs(config).num_resumed == 0
    assert "new" in read_sessions(config.out).session_id


def dies_in_a_file(marker: Path) -> tuple[str, type]:
    class Dying(Staging):
        def stage(self, task: Task) -> Row:
            if task["at"] == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().stage(task)

    return "Staging", Dying


def dies_after_the_receipt_of_a_range(marker: Path) -> tuple[str, type]:
    class Dying(Ranges):
        def build(self, task: Task) -> Row:
            row = super().build(task)
            if task["at"] == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return row

    return "Ranges", Dying


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("dying", [dies_in_a_file, dies_after_the_receipt_of_a_range])
def test_a_killed_worker_costs_nothing_but_time(
    dying: Callable[[Path], tuple[str, type]],
    logs: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker, out = tmp_path / "marker", tmp_path / "out" / "s.parquet"
    monkeypatch.setattr(importer, *dying(marker))
    report = import_logs(config_of(logs, out))
    assert marker.exists()
    assert written(out) == reference
    assert report.num_resumed == (1 if dying is dies_after_the_receipt_of_a_range else 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_file_that_kills_every_worker_ends_the_import_and_is_named(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Staging):
        def stage(self, task: Task) -> Row:
            if task["at"] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().stage(task)

    monkeypatch.setattr(importer, "Staging", Dying)
    with pytest.raises(
        DataError, match=r"1.jsonl: fails in 3 tries \(its worker died; is memory short\?\); what is finished"
    ):
        import_logs(config_of(logs, tmp_path / "s.parquet"))
    monkeypatch.undo()
    assert import_logs(config_of(logs, tmp_path / "s.parquet")).num_resumed == NUM_FILES - 1


def test_rules_over_all_files_hold_across_ranges(tmp_path: Path) -> None:
    rows = [row(f"s{at:02d}", 0, embedding=[1.0, 0.0], part="fit", group_id=f"g{at % 5}") for at in range(50)]
    rows[7] |= {"part": "test"}  # of g2: fit is its home
    rows[9] |= {"embedding": [1.0]}
    for number, at in enumerate((0, 25)):
        write_lines(tmp_path / f"{number}.jsonl", rows[at : at + 25])
    config = config_of(tmp_path, tmp_path / "out" / "s.parquet", runner="local")
    report = import_logs(config)
    assert (report.num_bad_rows, report.num_sessions) == (2, 48)
    found = [json.loads(line) for line in Path(config.quarantine).read_text().splitlines()]
    assert [(bad["session_id"], bad["reason"]) for bad in found] == [
        ("s07", "a group_id must be in one part, got ('fit', 'test')"),
        ("s09", "embedding must have 2 numbers as in most rows, got 1"),
    ]


def test_a_pool_of_models_that_no_range_has_all_of(tmp_path: Path) -> None:
    models = np.repeat(DEFAULT_POOL, 30).tolist()
    logs = write_lines(tmp_path / "logs.jsonl", [row(f"s{at:03d}", 0, model=m) for at, m in enumerate(models)])
    sessions = read_sessions(import_logs(config_of(logs, tmp_path / "s.parquet", runner="local")).out)
    assert [sessions.catalog.names[action] for action in sessions.action] == models


def test_an_unknown_embedder_is_a_wrong_setting_where_there_are_texts_and_a_name_where_there_are_none(
    logs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown embedder 'ours'"):
        import_logs(config_of(logs, tmp_path / "s.parquet", runner="local", embedder="ours"))
    assert not list(tmp_path.iterdir())


def test_work_that_stops_for_want_of_room_is_kept(
    logs: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(logs, tmp_path / "s.parquet", runner="local")

    def full(location: Location, *_rest: object) -> None:
        raise OSError(f"No space left on device for {location}")

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "move_local", full)
        with pytest.raises(
            StoppedError, match=r"s.parquet.quarantine.jsonl: cannot be written \(No space left .* kept$"
        ):
            import_logs(config)
    report = import_logs(config)
    assert report.num_resumed > NUM_FILES
    assert written(tmp_path / "s.parquet") == reference


def test_each_error_is_its_own_files(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Staging):
        def stage(self, task: Task) -> Row:
            raise ZeroDivisionError(f"in {task['at']}")

    monkeypatch.setattr(importer, "Staging", Failing)
    with pytest.raises(StoppedError, match=r"0.jsonl: fails in 3 tries \(ZeroDivisionError: in 0\)"):
        import_logs(config_of(logs, tmp_path / "s.parquet", runner="local"))


def test_an_output_is_a_file_and_none_of_the_logs_however_it_is_spelled(
    logs: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="out must be another file than logs"):
        config_of(f"file://{logs}/0.jsonl", logs / "0.jsonl")
    with pytest.raises(ConfigError, match=r"out must be a file, .* is a folder; name a file in it"):
        import_logs(config_of(logs, tmp_path, runner="local"))
    import_logs(config_of(logs, f"file://{tmp_path}/s.parquet", runner="local"))
    assert written(tmp_path / "s.parquet") == reference


def test_a_place_that_is_not_there_is_one_line(logs: Path, s3_bucket: str) -> None:
    with pytest.raises(StoppedError, match=r"s3://nobody.* cannot be (reached|written)") as caught:
        import_logs(config_of(logs, s3_bucket.replace("bucket", "nobody") + "/s.parquet", runner="local"))
    assert "\n" not in str(caught.value)


def test_where_files_have_no_time_of_change_nothing_is_taken_up(tmp_path: Path) -> None:
    folder = Folder.at(f"memory://{tmp_path}")
    config = config_of(f"{folder}/a.jsonl", tmp_path / "s.parquet", runner="local", max_bad_share=0.0)
    for quality in (0.25, 0.75):
        folder.write("a.jsonl", json.dumps(row("s", 0, quality=quality)).encode())
        with pytest.raises(KeyboardInterrupt) if quality == 0.25 else nullcontext():
            import_logs(config, stop_at_ranges if quality == 0.25 else lambda *_: None)
    assert read_sessions(config.out).quality.tolist() == [0.75]


def stop_at_ranges(what: str, _done: int, _total: int) -> None:
    if what == "ranges":
        raise KeyboardInterrupt


def test_other_peoples_files_among_the_leavings_stay(logs: Path, tmp_path: Path) -> None:
    other = tmp_path / "s.parquet.unfinished" / "mine.txt"
    other.parent.mkdir()
    other.touch()
    import_logs(config_of(logs, tmp_path / "s.parquet", runner="local"))
    assert [path.name for path in other.parent.iterdir()] == ["mine.txt"]


def test_ranges_are_cut_by_size_and_never_inside_a_session() -> None:
    cuts = [("b", RANGE_BYTES), ("a", 1), ("c", RANGE_BYTES - 1), ("c", 9), ("c", 9), ("d", 9)]
    assert range_starts(cuts) == ("b", "c", "d")
    assert range_starts([("a", RANGE_BYTES), ("a", RANGE_BYTES)]) == ()
    assert range_starts([]) == ()


def test_a_quarantine_of_many_ranges_is_in_the_order_of_sessions_and_rows_without_one_come_first(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        rows = [row(f"s{at:02d}-{number}", 0, quality=2 if at % 3 else 1) for at in rng.permutation(40).tolist()]
        write_lines(tmp_path / f"{number}.jsonl", [*rows, {"turn": 3}])
    config = config_of(tmp_path, tmp_path / "out" / "s.parquet", runner="local", max_bad_share=0.9)
    import_logs(config)
    found = [json.loads(line) for line in Path(config.quarantine).read_text().splitlines()]
    nameless, others = found[:2], found[2:]
    assert [(bad["file"], bad["line"], bad["session_id"], bad["turn"]) for bad in nameless] == [
        (str(tmp_path / f"{number}.jsonl"), 41, None, 3) for number in range(2)
    ]
    assert len(others) == 52
    assert others == sorted(others, key=lambda bad: str(bad["session_id"]))
