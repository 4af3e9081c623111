import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.embedding import WordLlamaEmbedder
from seqroute_ray.core.errors import ConfigError, DataError, UnknownModelError
from seqroute_ray.core.log_schema import LOG_SCHEMA
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.sessions import read_sessions, to_table
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.formats import own
from seqroute_ray.data.formats.rows import ROWS_PER_BLOCK
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.sample import DEFAULT_POOL, SampleConfig, sample_logs

SMALL, MIDDLE, LARGE = DEFAULT_POOL
Row = dict[str, Any]


def row(session_id: str, turn: int, **fields: Any) -> Row:
    text = f"What is {turn} + {turn}?"
    return {"session_id": session_id, "turn": turn, "text": text, "model": SMALL, "quality": 1.0, "cost_usd": 1e-3} | (
        fields
    )


def good_rows(num_sessions: int = 3) -> list[Row]:
    return [row(f"s{session}", turn) for session in range(num_sessions) for turn in range(3)]


def write_lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(fields) + "\n" for fields in rows))
    return path


def write_parquet(path: Path, rows: list[Row]) -> Path:
    names = {name for fields in rows for name in fields}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([field for field in LOG_SCHEMA if field.name in names])), path)
    return path


def config_of(logs: Path, **fields: Any) -> ImportConfig:
    return ImportConfig(logs=(logs,), out=logs.with_name("sessions.parquet"), **{"runner": "local", **fields})


def quarantined(logs: Path) -> list[Row]:
    return [json.loads(line) for line in Path(config_of(logs).quarantine).read_text().splitlines()]


def changed(at: int, **fields: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [*rows[:at], rows[at] | fields, *rows[at + 1 :]]


def without(name: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{key: value for key, value in fields.items() if key != name} for fields in rows]


BAD_ROWS: list[tuple[Callable[[list[Row]], list[Row]], int | None, str]] = [
    (changed(4, quality=float("nan")), 5, "quality must be in [0, 1]"),
    (changed(4, quality=1.5), 5, "quality must be in [0, 1], or null for a turn that was not judged, got 1.5"),
    (changed(0, cost_usd=-0.1), 1, "cost_usd must be in [0, 1000000], got -0.1"),
    (changed(8, model="gpt-9"), 9, "model must be in the catalog"),
    (changed(5, turn=1), 6, "duplicate turn"),
    (changed(8, turn=3), 9, "gap in turns: those of a session must be 0..T-1, got '3 where 2 is missing'"),
    (changed(2, propensity=0.0), 3, "propensity must be in (0, 1]"),
    (changed(2, part="fit"), 3, "a session must be in one part, got ('', 'fit')"),
    (without("model"), None, "no row has model"),
    (without("quality"), None, "no row has quality"),
    (without("text"), None, "no row has embedding or text"),
]


@pytest.mark.parametrize(("change", "line", "words"), BAD_ROWS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_bad_logs_are_refused_in_one_line_with_file_row_and_rule(
    write: Callable[[Path, list[Row]], Path],
    change: Callable[[list[Row]], list[Row]],
    line: int | None,
    words: str,
    tmp_path: Path,
) -> None:
    logs = write(tmp_path / ("logs.jsonl" if write is write_lines else "logs.parquet"), change(good_rows()))
    assert (words if line is None else f"{logs}:{line}: {words}") in refusal(logs)


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", "empty (0 bytes)"),
    ("empty.parquet", b"", "empty (0 bytes)"),
    ("blank.jsonl", b"\n \n", "0 rows"),
    ("logs.csv", b"session_id,turn\n", "logs end in .parquet, .jsonl, .ndjson, .json, got '.csv'"),
    ("magic.parquet", b"PAR1 and no more", "not a readable Parquet file"),
    ("words.jsonl", b"hello\n", "words.jsonl:1: not a line of JSON"),
    ("list.json", b"\n[1, 2]\n", "list.json:2: not a JSON object but a list"),
    ("latin1.ndjson", b'{"session_id": "caf\xe9"}\n', "latin1.ndjson:1: not a line of JSON"),
    ("deep.jsonl", b"[" * 100_000 + b"\n", "deep.jsonl:1: not a line of JSON"),
    ("null.jsonl", b"null\n", "null.jsonl:1: not a JSON object but a NoneType"),
    ("two.jsonl", b"{} {}\n", "two.jsonl:1: not a line of JSON"),
    ("types.jsonl", b'{"session_id": 7, "text": null}\n', "types.jsonl:1: session_id must be string"),
    ("half.jsonl", b'{"turn": 1.5}\n', "half.jsonl:1: turn must be int64"),
    ("true.jsonl", b'{"cost_usd": true}\n', "true.jsonl:1: cost_usd must be double"),
    ("huge.jsonl", b'{"turn": 1' + b"0" * 30 + b"}\n", "huge.jsonl:1: turn must be int64"),
    ("surrogate.jsonl", b'{"text": "\\ud800"}\n', "surrogate.jsonl:1: text must be string"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES, ids=lambda value: str(value)[:20])
def test_unreadable_files_are_refused_in_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    logs = tmp_path / name
    logs.write_bytes(content)
    assert words in refusal(logs)


def test_a_truncated_parquet_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    logs = write_parquet(tmp_path / "logs.parquet", good_rows())
    logs.write_bytes(logs.read_bytes()[:-10])
    assert "not a readable Parquet file" in refusal(logs)
    assert "no such log file" in refusal(tmp_path / "absent.parquet")
    empty = write_parquet(tmp_path / "empty.parquet", good_rows())
    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    assert "0 rows" in refusal(empty)


def refusal(logs: Path) -> str:
    """What a refused import says: one line that names the file. Nothing is written."""
    config = config_of(logs, max_bad_share=0.0)
    with pytest.raises(DataError) as caught:
        import_logs(config)
    message = str(caught.value)
    assert str(logs) in message
    assert "\n" not in message
    assert not Path(config.out).exists()
    return message


def test_few_bad_rows_are_put_aside_with_their_sessions_and_no_text(tmp_path: Path) -> None:
    rows = good_rows(num_sessions=40)
    rows[4] |= {"quality": "high"}  # the middle turn of s1
    logs = write_lines(tmp_path / "logs.jsonl", rows)
    logs.write_text("\n" + logs.read_text() + "not json\n")  # every row is a line later
    report = import_logs(config_of(logs, max_bad_share=0.05))
    assert (report.num_rows, report.num_bad_rows, report.num_turns, report.num_sessions) == (121, 4, 117, 39)
    assert report.quarantine == str(tmp_path / "sessions.parquet.quarantine.jsonl")
    assert "s1" not in read_sessions(report.out).session_id
    spoiled = f"session has a bad row: {logs}:6"
    wrong_type = "quality must be double, got a value of another type"
    broken = "not a line of JSON: Expecting value: line 1 column 1 (char 0)"
    assert quarantined(logs) == [
        {"file": str(logs), "line": 122, "reason": broken, "session_id": None, "turn": None},
        {"file": str(logs), "line": 5, "reason": spoiled, "session_id": "s1", "turn": 0},
        {"file": str(logs), "line": 6, "reason": wrong_type, "session_id": "s1", "turn": 1},
        {"file": str(logs), "line": 7, "reason": spoiled, "session_id": "s1", "turn": 2},
    ]


def test_too_many_bad_rows_leave_the_quarantine_and_not_the_sessions(tmp_path: Path) -> None:
    logs = write_lines(tmp_path / "logs.jsonl", changed(4, quality=1.5)(good_rows()))
    with pytest.raises(DataError, match=r"logs.jsonl:5: quality .*; 3 of 9 rows cannot be used \(33.33%, .* 10.00%\)"):
        import_logs(config_of(logs, max_bad_share=0.1))
    assert [fields["line"] for fields in quarantined(logs)] == [4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs.jsonl", "sessions.parquet.quarantine.jsonl"]
    write_lines(logs, good_rows())
    assert import_logs(config_of(logs)).quarantine is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs.jsonl", "sessions.parquet"]


def test_logs_without_any_good_row_are_refused_even_when_all_may_be_bad(tmp_path: Path) -> None:
    logs = write_lines(tmp_path / "logs.jsonl", changed(0, quality=2)(good_rows(num_sessions=1)))
    with pytest.raises(DataError, match="3 of 3 rows cannot be used"):
        import_logs(config_of(logs, max_bad_share=1.0))


def test_json_lines_and_parquet_give_the_same_sessions(tmp_path: Path) -> None:
    table = sample_logs(SampleConfig(num_sessions=30, with_outcomes=True))
    parquet, lines = tmp_path / "logs.parquet", tmp_path / "logs.jsonl"
    pq.write_table(table, parquet)
    write_lines(lines, table.to_pylist())
    ours, theirs = (
        read_sessions(import_logs(ImportConfig(logs=(logs,), out=tmp_path / f"{logs.suffix}.out", runner="local")).out)
        for logs in (parquet, lines)
    )
    assert to_table(ours).equals(to_table(theirs), check_metadata=True)
    assert set(ours.catalog.names) == set(DEFAULT_POOL)
    assert ours.has_outcomes
    np.testing.assert_allclose(np.linalg.norm(ours.embedding.astype(np.float64), axis=1), 1.0, atol=1e-3)


def test_texts_are_embedded_by_the_named_embedder_and_a_text_may_repeat(tmp_path: Path) -> None:
    sessions = read_sessions(import_logs(config_of(write_lines(tmp_path / "logs.jsonl", good_rows()))).out)
    texts = [f"What is {turn} + {turn}?" for turn in range(3)]
    np.testing.assert_array_equal(sessions.embedding, np.tile(WordLlamaEmbedder().embed(texts), (3, 1)).astype("f2"))
    assert sessions.embedder == "wordllama"


def test_given_vectors_are_stored_at_unit_length_and_a_zero_one_stays_zero(tmp_path: Path) -> None:
    rows = [row("s", 0, embedding=[3.0, 4.0]), row("s", 1, embedding=[0, 0]), row("s", 2, embedding=[0, -1e30])]
    logs = write_lines(tmp_path / "logs.jsonl", rows)
    sessions = read_sessions(import_logs(config_of(logs, embedder="ours")).out)
    assert sessions.embedding.tolist() == np.array([[0.6, 0.8], [0, 0], [0, -1]], dtype=np.float16).tolist()
    assert sessions.embedder == "ours"


def test_the_pool_is_what_occurs_in_catalog_order_or_what_is_asked_for(tmp_path: Path) -> None:
    outcomes = [{"model": LARGE, "quality": 1, "cost_usd": 1}]
    logs = write_lines(tmp_path / "logs.jsonl", [row("s", 0, outcomes=outcomes), row("s", 1)])
    names = load_outcomes().catalog.names
    in_order = tuple(name for name in names if name in (SMALL, LARGE))
    assert read_sessions(import_logs(config_of(logs)).out).catalog.names == in_order
    asked = (MIDDLE, SMALL)
    sessions = read_sessions(import_logs(config_of(logs, models=asked)).out)
    assert sessions.catalog.names == asked
    assert sessions.action.tolist() == [1, 1]
    with pytest.raises(UnknownModelError, match="gpt-9"):
        import_logs(config_of(logs, models=("gpt-9",)))


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_catalog_file_names_and_prices_the_models(suffix: str, tmp_path: Path) -> None:
    catalog = tmp_path / f"catalog{suffix}"
    catalog.write_text('[{"name": "ours", "usd_per_m_input": 1, "usd_per_m_output": 3}]')
    rows = [row("s", 0, model="ours", cost_usd=None, prompt_tokens=1000, completion_tokens=100)]
    logs = write_lines(tmp_path / "logs.jsonl", rows)
    sessions = read_sessions(import_logs(config_of(logs, catalog=catalog)).out)
    assert sessions.catalog.names == ("ours",)
    assert sessions.cost_nusd.tolist() == [1_300_000]


def test_prompt_tokens_and_types_are_kept_and_unknown_where_the_logs_have_none(tmp_path: Path) -> None:
    known = row("s", 1, prompt_tokens=700, completion_tokens=5, source="maths")
    logs = write_lines(tmp_path / "logs.jsonl", [known, row("s", 0), row("s", 2, prompt_tokens=0)])
    queries = read_sessions(import_logs(config_of(logs)).out).queries
    assert queries.prompt_tokens.tolist() == [0, 700, 0]
    assert queries.task_type.tolist() == [UNKNOWN_TYPE, "maths", UNKNOWN_TYPE]


BAD_CATALOGS = [
    ("{", "not a readable catalog"),
    ("{}", "a catalog is a list of models"),
    ("[1]", "a catalog is a list of models"),
    ("[]", "at least one model"),
    ('[{"name": "x"}]', "wrong fields"),
    ('[{"name": "x", "usd_per_m_input": -1, "usd_per_m_output": 0}]', "must be a number >= 0"),
]


@pytest.mark.parametrize(("content", "words"), BAD_CATALOGS)
def test_a_wrong_catalog_file_is_named_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    for catalog in (tmp_path / "catalog.json", tmp_path / "catalog.yaml"):
        catalog.write_text(content)
        with pytest.raises(ConfigError, match=words) as caught:
            import_logs(config_of(tmp_path / "logs.jsonl", catalog=catalog))
        assert str(catalog) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_bad_share must be in \[0, 1\], got 2"):
        config_of(tmp_path / "logs.jsonl", max_bad_share=2)
    with pytest.raises(ConfigError, match="out must be another file than logs"):
        ImportConfig(logs=(tmp_path / "logs.parquet",), out=tmp_path / "logs.parquet")


def test_lines_keep_their_numbers_over_blocks_blank_lines_and_byte_order_marks(tmp_path: Path) -> None:
    num_rows = ROWS_PER_BLOCK + 3
    rows = [row(f"s{index}", 0, extra={"ignored": [1]}) for index in range(num_rows)]
    rows[-1]["quality"], rows[-2]["quality"] = float("nan"), "high"
    logs = write_lines(tmp_path / "logs.ndjson", rows)
    logs.write_bytes(b"\xef\xbb\xbf" + logs.read_bytes().replace(b"\n", b"\r\n\r\n"))
    first, last = own.read(logs)
    table = pa.concat_tables([first.table, last.table])
    assert table["session_id"].to_pylist() == [f"s{index}" for index in range(num_rows)]
    assert [*first.line, *last.line] == list(range(1, 2 * num_rows, 2))
    assert np.isnan(table["quality"].to_pylist()[-1])
    assert (list(first.broken), list(last.broken)) == ([], [1])
