"""Any Parquet rows with discrete actions as training batches, in RLlib's own columns.

obs, new_obs          lists of numbers, all of one length; `next_obs` is read where there is no `new_obs`
actions               integers from 0
rewards               numbers
terminateds           booleans: no value is expected after the row; its new_obs must be there and counts for nothing
action_mask,          optional lists of booleans: actions allowed in obs and in new_obs
next_action_mask
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.storage import Location, one_line, reaching, resolve
from seqroute_ray.training.reader import ALLOWED, NEXT_ALLOWED, Batch
from seqroute_ray.training.row_files import RowFile, made_once

FORMAT_VERSION = 1  # of the row files
ROWS_AT_ONCE = 2**16
ROWS, SHAPE = "rows", "shape.json"
MASKS = (ALLOWED, NEXT_ALLOWED)
NEXT_OBS_ALIAS = "next_obs"


@dataclass(frozen=True)
class ParquetData:
    """A BatchSource of Parquet rows."""

    rows: RowFile
    state_dim: int
    num_actions: int

    @classmethod
    def open(cls, location: Location, memory_mb: float, columns: Mapping[str, str]) -> "ParquetData":
        """From a file or a folder of files; columns: names in the files, by RLlib's names, where they differ.

        The rows are copied once into a row file, of which at most memory_mb are kept in memory. Raises DataError on
        a missing column, a wrong type or a number that cannot be, before the copy exists.
        """
        files, filesystem = parquet_files(location)
        identity = [[(file.path, file.size, file.mtime_ns) for file in files], sorted(columns.items()), FORMAT_VERSION]
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]

        def make(folder: Path) -> None:
            try:
                dataset = pads.dataset([file.path for file in files], filesystem=filesystem, format="parquet")
                _Copy(location, dataset, columns).write(folder)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{location}: cannot be read ({one_line(error)}); write it anew") from error

        folder = made_once(key, make)
        shape = json.loads((folder / SHAPE).read_text())
        rows = RowFile(folder / ROWS, row_type(shape["state_dim"], shape["mask_width"]), memory_mb)
        return cls(rows, shape["state_dim"], shape["num_actions"])

    @property
    def network(self) -> dict[str, int]:
        return {}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: IntArray) -> Batch:
        taken = self.rows.take(rows)
        return {name: taken[name] for name in taken.dtype.names or ()}


def parquet_files(location: Location) -> tuple[list[Any], pafs.FileSystem]:
    """The Parquet file, or all of a folder in the order of their names. Raises DataError when there is none."""
    filesystem, path = resolve(location)
    with reaching(location):
        files = [filesystem.get_file_info(path)]
        if files[0].type == pafs.FileType.Directory:
            found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
            files = sorted((file for file in found if file.path.endswith(".parquet")), key=lambda file: str(file.path))
    if not files or files[0].type != pafs.FileType.File:
        raise DataError(f"{location}: no Parquet files here; give a file, or a folder of .parquet files")
    return files, filesystem


def row_type(state_dim: int, mask_width: int) -> np.dtype[Any]:
    """A row of the file; mask_width 0: no masks."""
    masks = [(name, "?", (mask_width,)) for name in MASKS] if mask_width else []
    return np.dtype(
        [
            (Columns.OBS, "<f4", (state_dim,)),
            (Columns.NEXT_OBS, "<f4", (state_dim,)),
            (Columns.ACTIONS, "<i8"),
            (Columns.REWARDS, "<f4"),
            (Columns.TERMINATEDS, "?"),
            *masks,
        ]
    )


class _Copy:
    """Checked rows on their way into a row file."""

    def __init__(self, location: Location, dataset: pads.Dataset, columns: Mapping[str, str]) -> None:
        self._location, self._dataset = location, dataset
        there = set(dataset.schema.names)
        given = {**columns}
        if Columns.NEXT_OBS not in there:
            given.setdefault(Columns.NEXT_OBS, NEXT_OBS_ALIAS)
        fields = [name for name in row_type(1, 1).names or () if name not in MASKS or given.get(name, name) in there]
        self._names = {name: given.get(name, name) for name in fields}  # in the files, by RLlib's
        lacking = sorted(set(self._names.values()) - there)
        if lacking:
            raise DataError(
                f"{location}: lacks {', '.join(lacking)}; it has {', '.join(sorted(there))}: rename, or map names with "
                "input_read_schema"
            )
        if (ALLOWED in self._names) != (NEXT_ALLOWED in self._names):
            raise DataError(f"{location}: has one of {ALLOWED} and {NEXT_ALLOWED}; give both or neither")

    def write(self, folder: Path) -> None:
        state_dim = mask_width = highest = num_rows = 0
        with (folder / ROWS).open("wb") as file:
            for batch in self._dataset.to_batches(columns=[*self._names.values()], batch_size=ROWS_AT_ONCE):
                if len(batch) == 0:
                    continue
                columns = {name: self._column(name, batch.column(at)) for name, at in self._names.items()}
                state_dim = state_dim or columns[Columns.OBS].shape[1]
                mask_width = mask_width or (columns[ALLOWED].shape[1] if ALLOWED in columns else 0)
                rows = np.empty(len(batch), dtype=row_type(state_dim, mask_width))
                for name, values in columns.items():
                    if values.shape != rows[name].shape:
                        raise self._error(
                            name,
                            f"has lists of {values.shape[1]} numbers, others of "
                            f"{rows[name].shape[1]}; lists must be of one length",
                        )
                    rows[name] = values
                highest, num_rows = max(highest, int(rows[Columns.ACTIONS].max())), num_rows + len(rows)
                file.write(rows.tobytes())
        if num_rows == 0:
            raise DataError(f"{self._location}: no rows; give a file with transitions")
        if mask_width and highest >= mask_width:
            raise self._error(Columns.ACTIONS, f"must be in [0, {mask_width}) for masks of {mask_width}, got {highest}")
        shape = {"state_dim": state_dim, "mask_width": mask_width, "num_actions": mask_width or highest + 1}
        (folder / SHAPE).write_text(json.dumps(shape))

    def _error(self, name: str, problem: str) -> DataError:
        return DataError(f"{self._location}: {self._names[name]} {problem}")

    def _column(self, name: str, column: Any) -> NDArray[Any]:
        """[N] or [N, width], checked."""
        if column.null_count:
            raise self._error(name, "has nulls; drop those rows")
        width = None
        if name in (Columns.OBS, Columns.NEXT_OBS, *MASKS):
            column, width = self._flat(name, column)
        wanted: tuple[Any, str] = {
            Columns.ACTIONS: (pa.types.is_integer, "integers"),
            Columns.TERMINATEDS: (pa.types.is_boolean, "booleans"),
            **dict.fromkeys(MASKS, (pa.types.is_boolean, "booleans")),
        }.get(name, (_is_number, "numbers"))
        if not wanted[0](column.type):
            raise self._error(name, f"must be {wanted[1]}, got {column.type}")
        values = column.to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all():
            raise self._error(name, "holds a value that is not finite; drop those rows")
        if name == Columns.ACTIONS and values.min() < 0:
            raise self._error(name, f"must be from 0 on, got {values.min()}")
        return np.asarray(values if width is None else values.reshape(-1, width))

    def _flat(self, name: str, column: Any) -> tuple[Any, int]:
        """The values of lists that are all of one length, and that length."""
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise self._error(name, f"must be lists, got {kind}")
        flat = column.flatten()
        lengths = np.diff(column.offsets.to_numpy()) if not pa.types.is_fixed_size_list(kind) else [kind.list_size]
        if len(set(np.asarray(lengths).tolist())) != 1 or lengths[0] == 0:
            raise self._error(name, "has lists of several lengths, or empty ones; lists must be of one length")
        if flat.null_count:
            raise self._error(name, "has nulls; drop those rows")
        return flat, int(lengths[0])


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
