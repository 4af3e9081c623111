"""A training dataset on disk: turns once, transitions that refer to turns by row number, and a manifest written last.

manifest.json                   pool, state layout, configs, counts, checksums; a folder without one is unfinished
estimator.npz                   the outcome estimator that serving will use
turns/part-N-KEY.parquet        one file a shard, one row a turn: what a state needs of it, under every budget and path
transitions/part-N-KEY.parquet  one file a shard; turn_row counts the turns of the shard

A shard is a fixed run of sessions and its files depend on nothing else: however the work is split, the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import Estimates, OutcomeEstimator
from seqroute_ray.core.hbr import Transitions
from seqroute_ray.core.mdp import StateLayout, TurnFeatures
from seqroute_ray.core.sessions import fixed_binary
from seqroute_ray.core.storage import Folder, Location, one_line

FORMAT_VERSION = 4
MANIFEST, ESTIMATOR, TURNS, TRANSITIONS = "manifest.json", "estimator.npz", "turns", "transitions"
MANIFEST_FIELDS = (
    "catalog",
    "embedder",
    "layout",
    "configs",
    "key",
    "num_sessions",
    "num_turns",
    "num_transitions",
    "num_bankrupt",
    "quarantined",
    "mean_cost_usd",
    "strata",
    "estimator_sha256",
    "shards",
    "data_fingerprint",
)
ROWS_PER_GROUP = 131_072

TRANSITION_SCHEMA = pa.schema(
    [
        pa.field("turn_row", pa.int32(), nullable=False),  # row of the shard's turns
        pa.field("turn", pa.int16(), nullable=False),
        pa.field("action", pa.int16(), nullable=False),
        pa.field("remaining_nusd", pa.int64(), nullable=False),  # before the turn
        pa.field("cost_nusd", pa.int64(), nullable=False),  # not spent when it bankrupts
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("bankrupt", pa.bool_(), nullable=False),
    ]
)
ESTIMATE_COLUMNS = tuple(field.name for field in fields(Estimates))
_DICTIONARY = ["cost_nusd", "reward"]  # few distinct values: a question's answers cost and score the same in every path
_DELTA = ["turn_row", "turn", "action", "remaining_nusd"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DatasetHeader:
    """A relabeled dataset without its rows."""

    catalog: Catalog
    embedder: str
    layout: StateLayout
    estimator: OutcomeEstimator
    manifest: dict[str, Any]

    @property
    def bankruptcy_penalty(self) -> float:
        """What its rewards take off for a bankruptcy, in turns of full quality."""
        return float(self.manifest["configs"]["hbr"]["bankruptcy_penalty"])


@dataclass(frozen=True, kw_only=True)
class Dataset(DatasetHeader):
    """A relabeled dataset in memory."""

    turns: TurnFeatures  # [N] of every turn, cross-fitted
    difficulty: NDArray[np.int8]  # [N] of the turns; see strata.py
    transitions: Transitions  # turn_row counts the turns of all shards


def part_name(shard: Mapping[str, Any]) -> str:
    """Runs of other settings have other names: in one folder they cannot spoil each other's files."""
    return f"part-{shard['shard']:05d}-{shard['key'][:8]}"


def shard_files(shard: Mapping[str, Any]) -> tuple[str, str]:
    """Names of a shard's turns and transitions; shard: a row of the manifest, or its `shard` and `key`."""
    return f"{TURNS}/{part_name(shard)}.parquet", f"{TRANSITIONS}/{part_name(shard)}.parquet"


def shard_sums(shard: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of a shard's files by name; shard: a row of the manifest."""
    return dict(zip(shard_files(shard), (shard["turns_sha256"], shard["transitions_sha256"]), strict=True))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def encode_transitions(chunks: Iterable[Transitions]) -> bytes:
    """The Parquet file of a shard's transitions, compressed chunk by chunk."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        TRANSITION_SCHEMA,
        compression="zstd",
        use_dictionary=_DICTIONARY,
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        write_statistics=False,  # rows are read all at once
    ) as writer:
        for chunk in chunks:
            columns = [pa.array(getattr(chunk, field.name), field.type) for field in TRANSITION_SCHEMA]
            writer.write_table(pa.table(columns, schema=TRANSITION_SCHEMA), row_group_size=ROWS_PER_GROUP)
    return bytes(sink.getvalue())


def encode_turns(embedding: NDArray[np.float16], turns: TurnFeatures, difficulty: NDArray[np.int8]) -> bytes:
    """The Parquet file of a shard's N turns; embedding: [N, D], difficulty: [N]."""

    def matrix(values: NDArray[np.float32]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns = {
        "embedding": fixed_binary(embedding),
        "difficulty": pa.array(difficulty),
        "history": matrix(turns.history),
        **{name: matrix(getattr(turns.estimates, name)) for name in ESTIMATE_COLUMNS},
    }
    sink = pa.BufferOutputStream()
    in_dictionary = ["embedding"]  # texts repeat
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=in_dictionary, write_statistics=False)
    return bytes(sink.getvalue())


def encode_estimator(estimator: OutcomeEstimator) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **estimator.arrays())  # type: ignore[arg-type]  # numpy's stub types **kwds as allow_pickle
    return sink.getvalue()


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The file that finishes a dataset: only with it does one exist for readers."""
    return (json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n").encode()


def read_manifest(location: Location) -> dict[str, Any]:
    """Raises DataError when the folder is no finished dataset of this format."""
    folder = Folder.at(location)
    if not folder.exists(MANIFEST):
        raise DataError(f"{folder}: no finished dataset here (no {MANIFEST}); make one with `seqroute relabel`")
    try:
        manifest: dict[str, Any] = json.loads(folder.read(MANIFEST))
    except ValueError as error:
        raise DataError(f"{folder}/{MANIFEST}: not JSON ({error}); relabel again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{folder}: dataset format {version}, this version reads {FORMAT_VERSION}; relabel again")
    lacking = sorted(set(MANIFEST_FIELDS) - manifest.keys())
    if lacking:
        raise DataError(f"{folder}/{MANIFEST}: lacks {', '.join(lacking)}; relabel into another folder")
    return manifest


def read_header(location: Location) -> DatasetHeader:
    """All of a finished dataset but its rows. Raises DataError naming the file that is missing or damaged."""
    manifest = read_manifest(location)
    return DatasetHeader(
        catalog=Catalog.from_json(manifest["catalog"]),
        embedder=manifest["embedder"],
        layout=StateLayout.from_json(manifest["layout"]),
        estimator=read_estimator(Folder.at(location), manifest["estimator_sha256"]),
        manifest=manifest,
    )


def read_shards(
    location: Location, manifest: Mapping[str, Any]
) -> Iterator[tuple[TurnFeatures, NDArray[np.int8], Transitions]]:
    """Turns, their difficulty and transitions, shard by shard; turn_row counts the turns of all shards.

    Raises DataError as read_header.
    """
    folder, first_row = Folder.at(location), 0
    for shard in manifest["shards"]:
        yield _read_shard(folder, shard, first_row)  # no name: the next shard is read when this one may be forgotten
        first_row += shard["num_turns"]


def _read_shard(
    folder: Folder, shard: Mapping[str, Any], first_row: int
) -> tuple[TurnFeatures, NDArray[np.int8], Transitions]:
    rows = read_transitions(folder, shard)
    return *read_turns(folder, shard), replace(rows, turn_row=rows.turn_row.astype(np.int64) + first_row)


def read_dataset(location: Location) -> Dataset:
    """Read a finished dataset. Raises DataError as read_header."""
    header = read_header(location)
    turns, difficulty, transitions = zip(*read_shards(location, header.manifest), strict=True)
    return Dataset(
        **vars(header),
        turns=TurnFeatures.concatenate(turns),
        difficulty=np.concatenate(difficulty),
        transitions=Transitions.concatenate(transitions),
    )


def read_turns(folder: Folder, shard: Mapping[str, Any]) -> tuple[TurnFeatures, NDArray[np.int8]]:
    """A shard's turns and their difficulty [N]. Raises DataError when they are not what the manifest says."""

    def parse(content: bytes) -> tuple[TurnFeatures, NDArray[np.int8]]:
        table = pq.read_table(pa.BufferReader(content), columns=["difficulty", "history", *ESTIMATE_COLUMNS])

        def matrix(name: str) -> NDArray[np.float32]:
            column = table[name].combine_chunks()
            return np.asarray(column.flatten(), dtype=np.float32).reshape(len(column), column.type.list_size)

        features = TurnFeatures(Estimates(*(matrix(name) for name in ESTIMATE_COLUMNS)), matrix("history"))
        return features, table["difficulty"].to_numpy()

    return _checked(folder, shard_files(shard)[0], shard["turns_sha256"], parse)


def read_transitions(folder: Folder, shard: Mapping[str, Any]) -> Transitions:
    """A shard's transitions; turn_row counts its own turns. Raises DataError as read_turns."""

    def parse(content: bytes) -> Transitions:
        table = pq.read_table(pa.BufferReader(content), schema=TRANSITION_SCHEMA)
        return Transitions(*(table[field.name].to_numpy() for field in fields(Transitions)))

    return _checked(folder, shard_files(shard)[1], shard["transitions_sha256"], parse)


def read_estimator(folder: Folder, checksum: str) -> OutcomeEstimator:
    """Raises DataError as read_turns."""

    def parse(content: bytes) -> OutcomeEstimator:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return OutcomeEstimator.from_arrays(dict(archive))

    return _checked(folder, ESTIMATOR, checksum, parse)


def _checked(folder: Folder, name: str, checksum: str, parse: Callable[[bytes], T]) -> T:
    """A parsed file of a dataset, if it is the one that the manifest knows."""
    try:
        content = folder.read(name)
        if sha256(content) != checksum:
            raise ValueError("its checksum is not the manifest's")
        return parse(content)
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, pa.ArrowException) as error:
        raise DataError(f"{folder}/{name}: cannot be read ({one_line(error)}); relabel into another folder") from error


def fingerprint(shards: Iterable[Mapping[str, Any]], estimator_sha256: str) -> str:
    """Short hash of all that training reads."""
    sums = [estimator_sha256, *(shard[name] for shard in shards for name in ("turns_sha256", "transitions_sha256"))]
    return sha256("".join(sums).encode())[:16]
