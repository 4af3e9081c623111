"""Sessions in memory and on disk: turns column by column, cut into sessions by offsets.

On disk a session is one row with list columns; the pool and the embedder travel in the schema's metadata, so a file
says by itself what its actions and vectors mean.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.queries import Queries
from seqroute_ray.core.storage import Location, one_line, resolve

SESSIONS_PER_ROW_GROUP = 512  # a row group is the unit of work of relabeling
FORMAT_VERSION = 2
NOT_MEASURED_NUSD = -1  # an outcome's cost where that model's answer was not measured
_METADATA_KEY = b"seqroute.sessions"


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """S sessions of N turns in all; turns of session s are rows offsets[s]:offsets[s + 1]."""

    catalog: Catalog
    embedder: str
    session_id: NDArray[np.str_]  # [S]
    part: NDArray[np.str_]  # [S] fit, tune or test; "" when the logs name none
    offsets: IntArray  # [S + 1]
    embedding: NDArray[np.float16]  # [N, D]
    action: IntArray  # [N] the logged model
    quality: NDArray[np.float32]  # [N] in [0, 1]; NaN: not judged
    cost_nusd: IntArray  # [N]
    prompt_tokens: IntArray  # [N] of the logged call; 0: unknown
    propensity: NDArray[np.float32]  # [N] of the logged action; NaN: unknown
    group_id: NDArray[np.str_]  # [N] rows of one seed query: never on two sides of a split
    source: NDArray[np.str_]  # [N] type of task; queries.UNKNOWN_TYPE when the logs name none
    outcome_quality: NDArray[np.float32]  # [N, K]; NaN: not judged
    outcome_cost_nusd: IntArray  # [N, K]; NOT_MEASURED_NUSD where that model's answer was not measured

    @property
    def num_sessions(self) -> int:
        return len(self.session_id)

    @property
    def num_turns(self) -> IntArray:
        """[S] turns of each session."""
        return np.diff(self.offsets)

    @property
    def turn(self) -> IntArray:
        """[N] position of each turn in its session, from 0."""
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.num_turns)

    @property
    def queries(self) -> Queries:
        """[N] turns as they were before they were answered."""
        return Queries(self.embedding, self.source, self.prompt_tokens)

    @property
    def is_tree(self) -> BoolArray:
        """[S] True where every model's cost and quality is known for every turn: any path can be replayed."""
        known = ((self.outcome_cost_nusd >= 0) & np.isfinite(self.outcome_quality)).all(axis=1)
        if not len(self.session_id):
            return np.zeros(0, dtype=np.bool_)
        return np.logical_and.reduceat(known, self.offsets[:-1])

    @property
    def has_outcomes(self) -> bool:
        """True when any path can be replayed in every session."""
        return bool(self.is_tree.all())

    def take(self, which: IntArray | BoolArray) -> "Sessions":
        """The sub-set of sessions given by index or mask, in that order."""
        index = np.flatnonzero(which) if which.dtype == np.bool_ else which
        lengths = self.num_turns[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], lengths)
        turn_columns = {name: getattr(self, name)[rows] for name in _TURN_COLUMNS}
        return Sessions(
            catalog=self.catalog,
            embedder=self.embedder,
            session_id=self.session_id[index],
            part=self.part[index],
            offsets=offsets,
            **turn_columns,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Sessions"]) -> "Sessions":
        """One after the other; they share the first one's catalog and embedder."""
        ends = np.cumsum([part.offsets[-1] for part in parts])
        offsets = [part.offsets[1:] + end - part.offsets[-1] for part, end in zip(parts, ends, strict=True)]
        columns = ("session_id", "part", *_TURN_COLUMNS)
        return cls(
            catalog=parts[0].catalog,
            embedder=parts[0].embedder,
            offsets=np.concatenate([[0], *offsets]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        )

    def over(self, catalog: Catalog) -> "Sessions":
        """Over another pool, which holds every logged model; outcomes of models outside it are left out."""
        shape, known = (len(self.action), len(catalog)), self.catalog.action_by_name
        outcome_quality = np.full(shape, np.nan, dtype=np.float32)
        outcome_cost_nusd = np.full(shape, NOT_MEASURED_NUSD, dtype=np.int64)
        action_of = np.full(len(self.catalog), -1)
        for action, name in enumerate(catalog.names):
            if name in known:
                before = known[name]
                action_of[before] = action
                outcome_quality[:, action] = self.outcome_quality[:, before]
                outcome_cost_nusd[:, action] = self.outcome_cost_nusd[:, before]
        return replace(
            self,
            catalog=catalog,
            action=action_of[self.action],
            outcome_quality=outcome_quality,
            outcome_cost_nusd=outcome_cost_nusd,
        )

    def of_part(self, part: str) -> "Sessions":
        """Sessions of one part; all of them when none names a part. Raises DataError when there are none."""
        named = set(self.part.tolist()) - {""}
        if not named:
            return self
        if part not in named:
            raise DataError(f"no session of part {part!r} here, only of {', '.join(sorted(named))}")
        return self.take(self.part == part)


_TURN_COLUMNS = (
    "embedding",
    "action",
    "quality",
    "cost_nusd",
    "prompt_tokens",
    "propensity",
    "group_id",
    "source",
    "outcome_quality",
    "outcome_cost_nusd",
)


def observed_outcomes(sessions: Sessions) -> tuple[FloatArray, FloatArray]:
    """Quality and cost in USD, each [N, K], of every answer that was measured; NaN elsewhere."""
    rows = np.arange(len(sessions.action))
    quality = sessions.outcome_quality.astype(np.float64)
    cost_usd = np.where(sessions.outcome_cost_nusd >= 0, to_usd(sessions.outcome_cost_nusd), np.nan)
    quality[rows, sessions.action] = sessions.quality
    cost_usd[rows, sessions.action] = to_usd(sessions.cost_nusd)
    return quality, cost_usd


def fixed_binary(rows: NDArray[np.float16]) -> pa.FixedSizeBinaryArray:
    """[N, D] float16 as N binary cells of 2 D bytes: the compact form of an embedding on disk."""
    data = np.ascontiguousarray(rows, dtype="<f2")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * data.shape[1]), len(data), [None, pa.py_buffer(data)])


def from_fixed_binary(column: pa.FixedSizeBinaryArray) -> NDArray[np.float16]:
    """Inverse of fixed_binary."""
    width = column.type.byte_width // 2
    values = np.frombuffer(column.buffers()[1], dtype="<f2")
    return values[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)


def _lists(offsets: IntArray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _matrix(values: NDArray[np.float32] | IntArray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def to_table(sessions: Sessions) -> pa.Table:
    """One row a session; every turn column is a list."""
    turn_arrays = {
        "embedding": fixed_binary(sessions.embedding),
        "action": pa.array(sessions.action.astype(np.int16)),
        "quality": pa.array(sessions.quality),
        "cost_nusd": pa.array(sessions.cost_nusd.astype(np.int64)),
        "prompt_tokens": pa.array(sessions.prompt_tokens.astype(np.int64)),
        "propensity": pa.array(sessions.propensity),
        "group_id": pa.array(sessions.group_id.tolist(), pa.string()),
        "source": pa.array(sessions.source.tolist(), pa.string()),
        "outcome_quality": _matrix(sessions.outcome_quality),
        "outcome_cost_nusd": _matrix(sessions.outcome_cost_nusd.astype(np.int64)),
    }
    columns = {
        "session_id": pa.array(sessions.session_id.tolist(), pa.string()),
        "part": pa.array(sessions.part.tolist(), pa.string()),
        **{name: _lists(sessions.offsets, values) for name, values in turn_arrays.items()},
    }
    header = {"format_version": FORMAT_VERSION, "catalog": sessions.catalog.to_json(), "embedder": sessions.embedder}
    return pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(header)})


def from_table(table: pa.Table, name: str = "table") -> Sessions:
    """Inverse of to_table. Raises DataError when the metadata is missing or of another version."""
    header = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    if header.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{name}: not a session file of format {FORMAT_VERSION}; make one with `seqroute import`")
    catalog = Catalog.from_json(header["catalog"])
    columns = {column: table[column].combine_chunks() for column in table.column_names}
    lengths = np.asarray(columns["action"].value_lengths())
    flat = {column: columns[column].flatten() for column in _TURN_COLUMNS}

    def numbers(column: str, dtype: type) -> NDArray[Any]:
        return np.asarray(flat[column].to_numpy(zero_copy_only=False), dtype=dtype)

    def matrix(column: str) -> NDArray[Any]:
        return np.asarray(flat[column].flatten()).reshape(-1, len(catalog))

    def texts(values: pa.Array) -> NDArray[np.str_]:
        return np.array(values.to_pylist(), dtype=np.str_)

    return Sessions(
        catalog=catalog,
        embedder=header["embedder"],
        session_id=texts(columns["session_id"]),
        part=texts(columns["part"]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        embedding=from_fixed_binary(flat["embedding"]),
        action=numbers("action", np.int64),
        quality=numbers("quality", np.float32),
        cost_nusd=numbers("cost_nusd", np.int64),
        prompt_tokens=numbers("prompt_tokens", np.int64),
        propensity=numbers("propensity", np.float32),
        group_id=texts(flat["group_id"]),
        source=texts(flat["source"]),
        outcome_quality=matrix("outcome_quality"),
        outcome_cost_nusd=matrix("outcome_cost_nusd"),
    )


def write_sessions(sessions: Sessions, path: Path) -> None:
    """A session file of format FORMAT_VERSION."""
    write_parts([sessions], path)


def write_parts(parts: Iterable[Sessions], path: Path) -> None:
    """Sessions that follow each other, over one pool, in one file: where they are cut into parts leaves no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting: list[pa.Table] = []  # fewer sessions than a row group has
    writer: pq.ParquetWriter | None = None
    try:
        for sessions in parts:
            waiting.append(to_table(sessions))
            writer = writer or pq.ParquetWriter(path, waiting[0].schema, compression="zstd")
            table = pa.concat_tables(waiting)
            whole = table.num_rows - table.num_rows % SESSIONS_PER_ROW_GROUP
            for start in range(0, whole, SESSIONS_PER_ROW_GROUP):
                writer.write_table(table.slice(start, SESSIONS_PER_ROW_GROUP).combine_chunks())
            waiting = [table.slice(whole)] if whole < table.num_rows else []
        if writer and waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    finally:
        if writer:
            writer.close()


@contextmanager
def open_sessions(location: Location) -> Iterator[pq.ParquetFile]:
    """A session file, to read it group by group. Raises DataError naming the file, also for what is read from it."""
    filesystem, path = resolve(location)
    try:
        source = filesystem.open_input_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{location}: no such session file; make one with `seqroute import`") from error
    except OSError as error:
        raise DataError(f"{location}: cannot be opened ({one_line(error)}); it must be a session file") from error
    try:
        with source:
            yield pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{location}: not a readable Parquet file: {one_line(error)}") from error


def read_sessions(location: Location, row_groups: Sequence[int] | None = None) -> Sessions:
    """Read a session file, or some of its row groups. Raises DataError naming the file."""
    with open_sessions(location) as file:
        table = file.read() if row_groups is None else file.read_row_groups(list(row_groups))
    return from_table(table, str(location))
