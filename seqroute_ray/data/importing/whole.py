"""What only the rows of all files together tell: which columns there are, homes of groups, where ranges begin."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.log_schema import group_key
from seqroute_ray.core.logs import Elsewhere, most_frequent_width
from seqroute_ray.core.random_bits import text_keys
from seqroute_ray.core.storage import Folder, resolve
from seqroute_ray.data.formats.wide import dearest
from seqroute_ray.data.runners import Row

RANGE_BYTES = 32 << 20  # of runs, in memory: the sessions of a range are built at once


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The same for all ranges, in whatever files the rows were."""

    num_rows: int
    num_broken: int  # rows that could not be read
    num_failed_calls: int
    columns: frozenset[str]  # with values
    elsewhere: Elsewhere
    dearest: str | None  # the model of the highest mean cost in the cells of a benchmark matrix
    starts: tuple[str, ...]  # the first session of each range but the first
    runs: tuple[str, ...]

    @classmethod
    def of(cls, files: Sequence[Row], folder: Folder, catalog: Catalog) -> "Whole":
        """files: rows of Staging.stage."""
        columns = frozenset(name for file in files for name in file["columns"])
        runs = runs_of(files)
        return cls(
            num_rows=sum(file["num_rows"] for file in files),
            num_broken=sum(file["num_broken"] for file in files),
            num_failed_calls=sum(file["num_failed_calls"] for file in files),
            columns=columns,
            elsewhere=Elsewhere(
                embedding_width=_width(files) if "embedding" in columns else None,
                home_of_group=homes_of_torn_groups(folder, runs) if "part" in columns else {},
            ),
            dearest=dearest(_costs(files), catalog),
            starts=range_starts([tuple(cut) for file in files for cut in file["cuts"]]),
            runs=runs,
        )


def runs_of(files: Sequence[Row]) -> tuple[str, ...]:
    """Names of the runs of files; files: rows of Staging.stage."""
    return tuple(name for file in files for name in file["files"] if name.endswith(".parquet"))


def _width(files: Sequence[Row]) -> int:
    counts = Counter[int]()
    for file in files:
        counts.update(dict(file["widths"]))
    return most_frequent_width(np.array([counts[width] for width in range(max(counts) + 1)]))


def _costs(files: Sequence[Row]) -> dict[str, tuple[int, int]]:
    costs: dict[str, tuple[int, int]] = {}
    for file in files:
        for model, (nusd, count) in file["costs"].items():
            before = costs.get(model, (0, 0))
            costs[model] = (before[0] + nusd, before[1] + count)
    return costs


def range_starts(cuts: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """Sessions that cut the sorted rows into ranges of about RANGE_BYTES; cuts: (session, bytes from there)."""
    starts, size, last = list[str](), 0, None
    for session, num_bytes in sorted(cuts):
        if size + num_bytes > RANGE_BYTES and last not in (None, session):
            starts.append(session)
            size = 0
        size, last = size + num_bytes, session
    return tuple(starts)


def homes_of_torn_groups(folder: Folder, runs: Sequence[str]) -> dict[str, str]:
    """The part, the first by name, that groups belong to whose rows name several; 16 bytes a group and run."""
    first_seen: dict[str, int] = {}
    keys, parts = [np.array([], dtype=np.uint64)], [np.array([], dtype=np.int64)]
    for run in runs:
        pairs = _groups_and_parts(folder, run)
        keys.append(text_keys(0, pairs["group"].to_pylist()))
        named = pairs["part"].to_pylist()
        parts.append(np.array([first_seen.setdefault(part, len(first_seen)) for part in named], dtype=np.int64))
    key, part = np.concatenate(keys), np.concatenate(parts)
    order = np.lexsort((part, key))
    key, part = key[order], part[order]
    repeated = np.unique(key[1:][(key[1:] == key[:-1]) & (part[1:] != part[:-1])])
    if not len(repeated):
        return {}
    parts_of: dict[str, set[str]] = {}
    for run in runs:  # keys of 64 bits may be equal by chance: now by name
        pairs = _groups_and_parts(folder, run)
        groups, in_part = pairs["group"].to_pylist(), pairs["part"].to_pylist()
        for at in np.flatnonzero(np.isin(text_keys(0, groups), repeated)).tolist():
            parts_of.setdefault(groups[at], set()).add(in_part[at])
    return {group: min(several) for group, several in parts_of.items() if len(several) > 1}


def _groups_and_parts(folder: Folder, run: str) -> pa.Table:
    """The distinct pairs of group and part of a run; "" is no part."""
    filesystem, path = resolve(f"{folder}/{run}")
    table = pq.read_table(path, filesystem=filesystem, columns=["session_id", "group_id", "part"])
    pairs = pa.table({"group": group_key(table), "part": pc.fill_null(table["part"], "")})
    return pairs.filter(pc.is_valid(pairs["group"])).group_by(["group", "part"]).aggregate([])
