"""Many files: whatever their order and however a session is spread over them, the sessions are the same."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.log_files import FORMATS, FormatName, find_logs
from tests.data.formats.support import CATALOG, FIXTURES
from tests.data.test_importer import config_of, good_rows, write_lines, write_parquet

JUDGED: dict[FormatName, tuple[str, int]] = {"openai-chat": ("gateway", 1), "litellm": ("sess-quiz-0003", 2)}
LOGS: dict[FormatName, str] = {
    "seqroute": "own.jsonl",
    "openai-chat": "openai_chat.jsonl",
    "litellm": "litellm.jsonl",
    "wide": "wide.csv",
    "trajectory": "trajectory.jsonl",
}


def session_bytes(folder: Path, format_name: FormatName, files: list[list[str]], random: Random) -> bytes:
    """The session file of logs whose files have these lines, given in a random order."""
    judgements = None
    if format_name in JUDGED:
        session_id, turn = JUDGED[format_name]
        judgements = folder / "judgements.jsonl"
        judgements.write_text(json.dumps({"session_id": session_id, "turn": turn, "quality": 0.5}))
    logs = [folder / f"logs-{number}{Path(LOGS[format_name]).suffix}" for number in range(len(files))]
    for path, lines in zip(logs, files, strict=True):
        path.write_text("\n".join(lines))
    config = ImportConfig(
        logs=tuple(random.sample(logs, len(logs))),
        out=folder / "sessions.parquet",
        format=format_name,
        catalog=CATALOG,
        judgements=judgements,
        runner="local",
    )
    return Path(import_logs(config).out).read_bytes()


def records_of(format_name: FormatName) -> tuple[list[str], list[str]]:
    """The lines that every file begins with, and the records."""
    text = (FIXTURES / LOGS[format_name]).read_text()
    if format_name != "wide":
        return [], text.splitlines()
    head, first, second, third = text.splitlines()
    return [head], [f"{first}\n{second}", third]


@pytest.mark.parametrize("format_name", LOGS)
@settings(deadline=None, max_examples=20)  # the machine may be busy
@given(data=st.data(), random=st.randoms(use_true_random=False))
def test_no_order_and_no_split_of_the_records_changes_a_byte(
    format_name: FormatName, data: st.DataObject, random: Random
) -> None:
    head, records = records_of(format_name)
    shuffled = data.draw(st.permutations(records))
    homes = data.draw(st.lists(st.integers(0, 2), min_size=len(records), max_size=len(records)))
    files = [[r for r, home in zip(shuffled, homes, strict=True) if home == number] for number in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        one = session_bytes(Path(folder), format_name, [head + records], random)
        many = session_bytes(Path(folder), format_name, [head + lines for lines in files if lines], random)
    assert many == one


def test_a_session_may_be_spread_over_files_of_two_kinds_and_a_folder(tmp_path: Path) -> None:
    rows = good_rows()
    folder = tmp_path / "logs"
    folder.mkdir()
    write_lines(folder / "b.jsonl", rows[:2])
    write_parquet(folder / "a.parquet", rows[2:5])
    (folder / "notes.txt").write_text("not a log")
    alone = write_lines(tmp_path / "c.ndjson", rows[5:])
    config = replace(config_of(alone), logs=(alone, folder))
    sessions = read_sessions(import_logs(config).out)
    assert sessions.session_id.tolist() == ["s0", "s1", "s2"]
    whole = write_lines(tmp_path / "whole.jsonl", rows)
    spread = Path(config.out).read_bytes()
    assert Path(import_logs(config_of(whole)).out).read_bytes() == spread


def test_errors_and_quarantine_name_the_file_and_the_line_of_each_row(tmp_path: Path) -> None:
    rows = good_rows()
    rows[4]["quality"] = 1.5  # the middle turn of s1
    first, second = write_lines(tmp_path / "a.jsonl", rows[:4]), write_lines(tmp_path / "b.jsonl", rows[4:])
    config = replace(config_of(first), logs=(second, first))
    with pytest.raises(DataError) as caught:
        import_logs(config)
    assert str(caught.value).startswith(f"{second}:1: quality must be in [0, 1]")
    found = [json.loads(line) for line in Path(config.quarantine).read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"], row["turn"]) for row in found] == [
        ("a.jsonl", 4, 0),
        ("b.jsonl", 1, 1),
        ("b.jsonl", 2, 2),
    ]
    assert found[0]["reason"] == f"session has a bad row: {second}:1"


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    logs = write_lines(tmp_path / "logs.jsonl", good_rows())
    assert import_logs(replace(config_of(logs), logs=(logs, logs))).num_rows == 9


def test_a_column_that_no_file_has_is_missing_and_one_that_some_have_is_not(tmp_path: Path) -> None:
    bare, full = write_lines(tmp_path / "a.jsonl", [{"session_id": "s", "turn": 0}]), tmp_path / "b.jsonl"
    write_lines(full, [{"session_id": "s", "turn": 1}])
    with pytest.raises(DataError, match=r"a.jsonl and 1 more: no row has model; a log row needs it; columns with"):
        import_logs(replace(config_of(bare), logs=(bare, full)))
    write_lines(full, good_rows())
    with pytest.raises(DataError, match=r"a.jsonl:1: .* is missing"):
        import_logs(replace(config_of(bare), logs=(bare, full)))


def test_a_folder_without_logs_and_a_file_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no log files in this folder; they end in .jsonl, .ndjson, .json$"):
        find_logs([tmp_path], FORMATS["trajectory"])
    with pytest.raises(DataError, match=r"logs.jsonl: wide logs end in .parquet, .csv, got '.jsonl'$"):
        find_logs([write_lines(tmp_path / "logs.jsonl", good_rows())], FORMATS["wide"])


def test_no_logs_and_an_output_among_the_logs_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path / "logs.jsonl")
    with pytest.raises(ConfigError, match="logs needs at least one file or folder, got none"):
        replace(config, logs=())
    with pytest.raises(ConfigError, match=r"out must be outside the folders of logs, got .*sessions.parquet"):
        replace(config, logs=(tmp_path,))


def test_every_format_is_in_the_table_and_has_an_example() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "import.md").read_text()
    for name in FORMATS:
        assert f"| `{name}`" in page
        assert name == "seqroute" or f"seqroute import --format {name} " in page
