"""A training dataset on disk: turns once, transitions that refer to turns by row number, and a manifest written last.

manifest.json              pool, state layout, configs, counts, checksums; a folder without one is unfinished
turns.parquet              one row a turn: what the state needs of it, under every budget and path
estimator.npz              the outcome estimator that serving will use
transitions/part-*.parquet one file a shard of sessions
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
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

FORMAT_VERSION = 2
MANIFEST, TURNS, ESTIMATOR, SHARDS = "manifest.json", "turns.parquet", "estimator.npz", "transitions"

TRANSITION_SCHEMA = pa.schema(
    [
        pa.field("turn_row", pa.int32(), nullable=False),  # row of turns.parquet
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
_DELTA = [field.name for field in TRANSITION_SCHEMA if pa.types.is_integer(field.type)]


@dataclass(frozen=True)
class Dataset:
    """A relabeled dataset in memory."""

    catalog: Catalog
    embedder: str
    layout: StateLayout
    estimator: OutcomeEstimator
    turns: TurnFeatures  # [N] of every turn, cross-fitted
    transitions: Transitions
    manifest: dict[str, Any]


def write_shard(transitions: Transitions, path: Path) -> str:
    """Write one shard by atomic replace; returns the SHA-256 of the file."""
    columns = {field.name: pa.array(getattr(transitions, field.name), field.type) for field in TRANSITION_SCHEMA}
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        pa.table(columns, schema=TRANSITION_SCHEMA),
        temporary,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        row_group_size=131_072,
    )
    temporary.replace(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_turns(folder: Path, embedding: NDArray[np.float16], turns: TurnFeatures) -> None:
    """Write the turn table of N turns."""

    def matrix(values: NDArray[np.float32]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns = {
        "embedding": fixed_binary(embedding),
        "history": matrix(turns.history),
        **{name: matrix(getattr(turns.estimates, name)) for name in ESTIMATE_COLUMNS},
    }
    pq.write_table(pa.table(columns), folder / TURNS, compression="zstd")


def write_estimator(folder: Path, estimator: OutcomeEstimator) -> None:
    np.savez(folder / ESTIMATOR, **estimator.arrays())  # type: ignore[arg-type]  # numpy's stub types **kwds as allow_pickle


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Finish the dataset: only now does it exist for readers."""
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n")
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises DataError when the folder is no finished dataset of this format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: no finished dataset here (no {MANIFEST}); make one with `seqroute relabel`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); relabel again") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{folder}: dataset format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    return manifest


def read_dataset(folder: Path) -> Dataset:
    """Read a finished dataset. Raises DataError naming the file that is missing or damaged."""
    manifest = read_manifest(folder)
    with _naming(folder / TURNS):
        table = pq.read_table(folder / TURNS, columns=["history", *ESTIMATE_COLUMNS])
    with _naming(folder / ESTIMATOR), np.load(folder / ESTIMATOR, allow_pickle=False) as archive:
        estimator = OutcomeEstimator.from_arrays(dict(archive))

    def matrix(name: str) -> NDArray[np.float32]:
        column = table[name].combine_chunks()
        return np.asarray(column.flatten(), dtype=np.float32).reshape(len(column), -1)

    return Dataset(
        catalog=Catalog.from_json(manifest["catalog"]),
        embedder=manifest["embedder"],
        layout=StateLayout.from_json(manifest["layout"]),
        estimator=estimator,
        turns=TurnFeatures(Estimates(*(matrix(name) for name in ESTIMATE_COLUMNS)), matrix("history")),
        transitions=read_shards(folder, manifest["shards"]),
        manifest=manifest,
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what reading a missing or cut-off file raises into a DataError that names it."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, BadZipFile, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); relabel again") from error


def read_shards(folder: Path, shards: Sequence[Mapping[str, Any]]) -> Transitions:
    """All transitions in shard order. Raises DataError when a shard is not what the manifest says."""
    tables = []
    for shard in shards:
        path = folder / SHARDS / shard["name"]
        with _naming(path):
            content = path.read_bytes()
            table = pq.read_table(pa.BufferReader(content), schema=TRANSITION_SCHEMA)
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise DataError(f"{path}: its checksum is not the manifest's; relabel again")
        tables.append(table)
    merged = pa.concat_tables(tables)
    return Transitions(*(merged[field.name].to_numpy() for field in fields(Transitions)))
