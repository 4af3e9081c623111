from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.data.importer import import_logs
from tests.data.test_importer import SMALL, config_of, good_rows, row, write_lines

Row = dict[str, Any]


def judgement(turn: int, quality: float | None, session_id: object = "s0") -> Row:
    return {"session_id": session_id, "turn": turn, "quality": quality, "judge": "ours"}


def write_table(path: Path, rows: list[Row]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def judged(folder: Path, rows: list[Row], judgements: Path) -> Sessions:
    logs = write_lines(folder / "logs.jsonl", rows)
    return read_sessions(import_logs(config_of(logs, judgements=judgements)).out)


@pytest.mark.parametrize("write", [write_lines, write_table])
def test_judgements_fill_and_override_the_quality_of_their_turns(
    write: Callable[[Path, list[Row]], Path], tmp_path: Path
) -> None:
    rows = good_rows(num_sessions=2)
    rows[1]["quality"] = None
    judgements = write(tmp_path / "j.jsonl", [judgement(1, 0.25), judgement(0, 0.5)])
    assert judged(tmp_path, rows, judgements).quality.tolist() == [0.5, 0.25, 1.0, 1.0, 1.0, 1.0]


def test_a_judgement_is_also_the_outcome_of_the_logged_model(tmp_path: Path) -> None:
    measured = [{"model": SMALL, "quality": 1.0, "cost_usd": 0.5}]
    judgements = write_lines(tmp_path / "j.jsonl", [judgement(0, 0.25)])
    sessions = judged(tmp_path, [row("s0", 0, outcomes=measured)], judgements)
    assert (sessions.quality.tolist(), sessions.outcome_quality.tolist()) == ([0.25], [[0.25]])


def test_logs_without_quality_are_judged_beside_them(tmp_path: Path) -> None:
    rows = [{name: value for name, value in fields.items() if name != "quality"} for fields in good_rows()]
    sessions = judged(tmp_path, rows, write_lines(tmp_path / "j.jsonl", [judgement(2, 1)]))
    assert np.isfinite(sessions.quality).tolist() == [False, False, True, *[False] * 6]


BAD: list[tuple[list[Row], str]] = [
    ([judgement(0, 1), judgement(3, 1)], "j.jsonl:2: no such session_id and turn in the logs"),
    ([judgement(0, 1, session_id="s9")], "j.jsonl:1: no such session_id and turn in the logs"),
    ([{"session_id": "s0", "quality": 1}], "j.jsonl:1: a judgement needs session_id and turn"),
    ([judgement(0, 1, session_id=None)], "j.jsonl:1: a judgement needs session_id and turn"),
    ([judgement(0, 1), judgement(1, 1), judgement(0, 0)], "j.jsonl:3: duplicate judgement: a turn has one"),
    ([judgement(0, 1.5)], "j.jsonl:1: quality must be in [0, 1], got 1.5"),
    ([judgement(0, -0.1)], "j.jsonl:1: quality must be in [0, 1], got -0.1"),
    ([judgement(0, float("nan"))], "j.jsonl:1: quality must be in [0, 1], got nan"),
    ([judgement(0, None)], "j.jsonl:1: quality must be in [0, 1], got None"),
    ([judgement(0, None) | {"quality": "good"}], "j.jsonl:1: quality must be double, got a value of another type"),
    ([judgement(0, 1) | {"turn": 0.5}], "j.jsonl:1: turn must be int64, got a value of another type"),
    ([judgement(0, 1, session_id=7)], "j.jsonl:1: session_id must be string, got a value of another type"),
]


@pytest.mark.parametrize(("judgements", "message"), BAD)
def test_a_bad_judgement_is_refused_in_one_line(
    judgements: list[Row], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        judged(tmp_path, good_rows(), write_lines(Path("j.jsonl"), judgements))
    assert str(caught.value) == message
    assert not (tmp_path / "sessions.parquet").exists()


def test_a_file_that_holds_no_judgements_is_refused(tmp_path: Path) -> None:
    logs = write_lines(tmp_path / "logs.jsonl", good_rows())
    csv = logs.with_suffix(".csv")
    csv.touch()
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    half = write_table(tmp_path / "half", [{"session_id": "s0", "turn": 0}])
    for path, words in [
        (tmp_path / "absent.jsonl", "absent.jsonl: no such file of judgements"),
        (
            csv,
            "logs.csv: judgements end in .parquet, .jsonl, .ndjson, .json, got '.csv'",
        ),
        (empty, "empty.jsonl: the file of judgements is empty .0 bytes.; it needs one judgement a row"),
        (half, "half.parquet: no column quality; a judgement has session_id, turn, quality"),
    ]:
        with pytest.raises(DataError, match=words):
            import_logs(config_of(logs, judgements=path))
