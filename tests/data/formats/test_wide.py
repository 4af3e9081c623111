from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.formats.support import FIXTURES, PUT_ASIDE, assert_texts, imported, refusal, turns


def test_a_query_is_a_session_and_the_dearest_model_is_the_logged_one(tmp_path: Path) -> None:
    sessions = imported(FIXTURES / "wide.csv", tmp_path, "wide")
    assert turns(sessions) == [("q1", "large", None, 2_000_000), ("q2", "large", 1.0, 1_000_000)]
    assert sessions.outcome_cost_nusd.tolist() == [[20_000, 2_000_000], [10_000, 1_000_000]]
    np.testing.assert_array_equal(sessions.outcome_quality, [[1.0, np.nan], [0.0, 1.0]])
    assert sessions.group_id.tolist() == ["q1", "q2"]
    assert sessions.source.tolist() == ["", "maths"]
    assert_texts(sessions, ["What is the capital of Chile?", "Is 221 prime?\nSay why."])


def test_a_matrix_may_bring_sessions_vectors_and_the_logged_models(tmp_path: Path) -> None:
    matrix = {
        "session_id": ["s", "s"],
        "turn": [1, 0],
        "query_id": [7, 8],
        "embedding": [[3.0, 4.0], [0.0, 1.0]],
        "model": ["small", None],
        "part": ["fit", "fit"],
        "group_id": ["mine", None],
        "small|quality": [True, None],
        "small|cost": [0.001, None],
        "large|quality": [0.5, 0.25],
        "large|cost": [0.01, 0.02],
    }
    pq.write_table(pa.table(matrix), tmp_path / "matrix.parquet")
    sessions = imported(tmp_path / "matrix.parquet", tmp_path, "wide")
    assert turns(sessions) == [("s", "large", 0.25, 20_000_000), ("s", "small", 1.0, 1_000_000)]
    assert sessions.outcome_cost_nusd.tolist() == [[-1, 20_000_000], [1_000_000, 10_000_000]]
    assert sessions.group_id.tolist() == ["8", "mine"]
    assert sessions.part.tolist() == ["fit"]
    np.testing.assert_allclose(sessions.embedding, [[0.0, 1.0], [0.6, 0.8]], atol=1e-3)


def test_a_model_is_the_same_under_each_of_its_names_in_all_files(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.csv").write_text("query_id,text,small|quality,small|cost,large|quality,large|cost\nq1,Hi,1,0.1,1,0.2")
    (logs / "b.csv").write_text("query_id,text,openai/gpt-4o|quality,openai/gpt-4o|cost\nq2,Hi,0.5,0.3")
    sessions = imported(logs, tmp_path, "wide")
    assert turns(sessions) == [("q1", "large", 1.0, 200_000_000), ("q2", "large", 0.5, 300_000_000)]


HEAD = b"query_id,text,small|quality,small|cost"
BAD: list[tuple[bytes, str]] = [
    (b"", "bad.csv: the log file is empty (0 bytes); it needs one row a turn"),
    (HEAD, "bad.csv: the log file has 0 rows; it needs one row a turn"),
    (b"caf\xe9", "bad.csv: not a readable CSV file: it must be UTF-8"),
    (
        b"query_id,text\nq,Hi",
        "bad.csv: no columns MODEL|quality and MODEL|cost; a benchmark matrix has both of each model",
    ),
    (b"query_id,text,small|cost\nq,Hi,1", "bad.csv: column 'small|quality' must be there once, got 0"),
    (HEAD + b",small|cost\nq,Hi,1,1,1", "bad.csv: column 'small|cost' must be there once, got 2"),
    (
        b"text,small|quality,small|cost\nHi,1,1",
        "bad.csv: no column query_id or session_id; a row of a benchmark matrix needs one of them",
    ),
    (HEAD + b"\nq,Hi,1", f"bad.csv:2: a row needs 4 cells as the header has, got 3{PUT_ASIDE}"),
    (HEAD + b"\nq,Hi,good,1", f"bad.csv:2: small|quality must be a number{PUT_ASIDE}"),
    (
        HEAD + b"\nq,Hi,2,1",
        f"bad.csv:2: quality must be in [0, 1], or null for a turn that was not judged, got 2.0{PUT_ASIDE}",
    ),
    (
        HEAD.replace(b"small", b"gpt-9") + b"\nq,Hi,1,1",
        "bad.csv:2: model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT), "
        f"got 'gpt-9'{PUT_ASIDE}",
    ),
    (
        HEAD + b',model\n"q\n1",Hi,1,1,\nq2,Hi,1,1,large',
        f"bad.csv:4: no cost: a row needs cost_usd, or prompt_tokens and completion_tokens{PUT_ASIDE}".replace(
            "1 of 1", "1 of 2"
        ).replace("100.00%", "50.00%"),
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_matrix_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(content, "bad.csv", "wide", tmp_path, monkeypatch) == message
