"""Any Parquet rows with discrete actions: read as they are, or refused in one line before the first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.rllib.core.columns import Columns

from seqroute_ray.core.errors import DataError
from seqroute_ray.training.parquet import ParquetData

N, D, A = 50, 3, 4


def columns(seed: int = 0, num_rows: int = N) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(num_rows, D)).tolist(),
        "new_obs": rng.normal(size=(num_rows, D)).tolist(),
        "actions": [A - 1, *rng.integers(0, A, num_rows - 1).tolist()],
        "rewards": rng.normal(size=num_rows).tolist(),
        "terminateds": (rng.random(num_rows) < 0.2).tolist(),
    }


def write(path: Path, table: dict[str, Any]) -> Path:
    pq.write_table(pa.table(table), path, row_group_size=7)
    return path


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    table = columns()
    data = ParquetData.open(write(tmp_path / "rows.parquet", table), 16, {})
    assert (len(data), data.state_dim, data.num_actions) == (N, D, A)
    rows = np.array([3, 0, 49, 3])
    for name, values in data.batch(rows).items():
        np.testing.assert_array_equal(values, np.asarray(table[name], dtype=values.dtype)[rows], err_msg=name)


def test_a_folder_other_names_and_masks(tmp_path: Path) -> None:
    masks = (np.random.default_rng(1).random((N, A + 1)) < 0.5).tolist()
    for part in ("b", "a"):
        table = columns(seed=ord(part)) | {"action_mask": masks, "next_action_mask": masks}
        table["state"], table["next_obs"] = table.pop("obs"), table.pop("new_obs")
        write(tmp_path / f"{part}.parquet", table)
    data = ParquetData.open(tmp_path, 16, {"obs": "state"})
    assert (len(data), data.num_actions) == (2 * N, A + 1)  # as wide as the masks
    batch = data.batch(np.arange(2 * N))
    np.testing.assert_allclose(batch[Columns.OBS][:N], columns(seed=ord("a"))["obs"], rtol=1e-6)
    np.testing.assert_array_equal(batch["next_action_mask"][N:], masks)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    assert len(ParquetData.open(write(tmp_path / "rows.parquet", columns()), 16, {})) == N
    write(tmp_path / "rows.parquet", columns(num_rows=9))
    assert len(ParquetData.open(tmp_path / "rows.parquet", 16, {})) == 9


def changed(name: str, row: int, value: Any) -> dict[str, Any]:
    table = columns()
    table[name][row] = value
    return table


REFUSED = {
    "a missing column": ({k: v for k, v in columns().items() if k != "rewards"}, "lacks rewards; it has actions, new"),
    "not a number": (changed("rewards", 8, np.nan), "rewards holds a value that is not finite; drop those rows"),
    "an endless observation": (changed("obs", 8, [0, np.inf, 1]), "obs holds a value that is not finite"),
    "a null": (changed("obs", 8, [0, None, 1]), "obs has nulls"),
    "a short observation": (changed("obs", 8, [0.0]), "obs has lists of several lengths"),
    "next observations of another width": (columns() | {"new_obs": [[0.0]] * N}, "new_obs has lists of 1 numbers"),
    "an action below 0": (changed("actions", 8, -2), "actions must be from 0 on, got -2"),
    "continuous actions": (columns() | {"actions": [0.5] * N}, "actions must be integers, got double"),
    "an end that is no boolean": (columns() | {"terminateds": [0] * N}, "terminateds must be booleans, got int64"),
    "one mask": (columns() | {"action_mask": [[True] * A] * N}, "give both or neither"),
    "masks too narrow": (
        columns() | dict.fromkeys(("action_mask", "next_action_mask"), [[True]] * N),
        r"actions must be in \[0, 1\) for masks of 1, got 3",
    ),
    "no rows": ({name: pa.array([], pa.list_(pa.float32())) for name in columns()}, "no rows"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_learned_from_is_refused(problem: str, tmp_path: Path) -> None:
    table, words = REFUSED[problem]
    path = write(tmp_path / "rows.parquet", table)
    for _ in range(2):  # and no half-made copy passes the second time
        with pytest.raises(DataError, match=words):
            ParquetData.open(path, 16, {})


def test_no_file_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="no Parquet files here"):
            ParquetData.open(place, 16, {})
    (tmp_path / "bad.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match="cannot be read"):
        ParquetData.open(tmp_path / "bad.parquet", 16, {})
