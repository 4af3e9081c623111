"""Read one file of logs: its rows become runs, each sorted by session, with the place of every row.

Texts are embedded here and go no further; with drop_text ids do not either.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqroute_ray.core.dataset import sha256
from seqroute_ray.core.embedding import load_embedder
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.log_schema import codes, with_values
from seqroute_ray.core.logs import embedding_widths
from seqroute_ray.core.sessions import fixed_binary
from seqroute_ray.core.storage import FileState, Folder
from seqroute_ray.data.formats.rows import LogBlock
from seqroute_ray.data.importing.bad_lines import BadLine, quarantine_lines
from seqroute_ray.data.log_files import Format
from seqroute_ray.data.receipts import finished, write_or_refuse
from seqroute_ray.data.runners import Row, Task

RUN_ROWS, RUN_BYTES = 100_000, 64 << 20  # a run is written when it has so many
ROWS_PER_GROUP = 4096  # of a run: what a range reads beyond its own sessions
CUTS_PER_RUN = 16  # session ids that a run tells of, from which the bounds of ranges are chosen
TEXTS_PER_BATCH = 1024
NAMED_LINES = 20  # of failed calls

FILE, ROW, LINE, BROKEN, VECTOR = "_file", "_row", "_line", "_broken", "_vector"  # columns beside the schema's


@dataclass(frozen=True)
class Staging:
    """The work on one file, with what every worker needs to know. Picklable."""

    folder: Folder  # for the runs
    files: tuple[FileState, ...]
    kind: Format
    embedder: str  # of texts
    drop_text: bool

    def stage(self, task: Task) -> Row:
        """Write the runs of file `at`, or find them there; what the file tells of the logs. Raises DataError."""
        at = task["at"]
        receipt, terms = f"{self.kind.name}/{at:05d}.json", {"at": at}
        found = finished(self.folder, receipt, terms, lambda row: row["files"])
        if found is not None:
            return {**found, "resumed": True}
        facts, files = Facts(), dict[str, str]()
        for number, block in enumerate(_join_blocks(self.kind.read(self.files[at].location))):
            table = self._encoded(block, at, facts.num_rows)
            named = table.slice(0, table.num_rows - table["session_id"].null_count)
            name, content = f"{self.kind.name}/{at:05d}-{number:05d}.parquet", encode_run(named)
            write_or_refuse(self.folder, name, content)
            files[name] = sha256(content)
            bad = self._nameless(table.slice(named.num_rows), at)
            if bad:
                facts.first_bad = facts.first_bad or bad[0]
                name, content = name.replace(".parquet", ".bad.jsonl"), quarantine_lines(bad)
                write_or_refuse(self.folder, name, content)
                files[name] = sha256(content)
            facts.add(block, named, self.kind, len(bad))
        if not (facts.num_rows or facts.num_failed_calls):
            raise DataError(f"{self.files[at].location}: the log file has 0 rows; it needs one row a turn")
        row = {**terms, "files": files, **facts.to_json()}
        write_or_refuse(self.folder, receipt, json.dumps(row).encode())
        return {**row, "resumed": False}

    def _encoded(self, block: LogBlock, at: int, first_row: int) -> pa.Table:
        """The rows sorted by session, with their places and vectors, without texts."""
        table, num_rows = block.table, block.table.num_rows
        broken = pa.array([block.broken.get(row) for row in range(num_rows)], pa.string())
        own = {
            FILE: pa.array(np.full(num_rows, at, dtype=np.int32)),
            ROW: pa.array(np.arange(first_row, first_row + num_rows)),
            LINE: pa.array(block.line),
            BROKEN: broken,
        }
        if "text" in table.column_names:
            own[VECTOR] = self._vectors(table)
            blank = pc.if_else(pc.is_valid(table["text"]), "", pa.scalar(None, pa.string()))
            table = table.set_column(table.column_names.index("text"), "text", blank)
        if self.drop_text:
            table = hash_ids(table)
        table = pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **own})
        return table.take(pc.sort_indices(table, sort_keys=[("session_id", "ascending")]))

    def _nameless(self, table: pa.Table, at: int) -> list[BadLine]:
        """Rows without a session, which no range has, in the order of the file; table: as _encoded gives them."""
        turns = table["turn"].to_pylist() if "turn" in table.column_names else [None] * table.num_rows
        places = zip(table[ROW].to_pylist(), table[LINE].to_pylist(), table[BROKEN].to_pylist(), turns, strict=True)
        return [
            BadLine(at, row, self.files[at].location, line, broken or self.kind.nameless, None, turn)
            for row, line, broken, turn in sorted(places, key=lambda place: place[0])
        ]

    def _vectors(self, table: pa.Table) -> pa.Array:
        """[N] float16 bytes of each text's vector; null without text, and where the rows bring embeddings."""
        index, texts = codes(table["text"])
        if "embedding" in with_values(table) or not texts:
            return pa.nulls(table.num_rows, pa.binary())
        embedder = _embedder(self.embedder)
        starts = range(0, len(texts), TEXTS_PER_BATCH)
        vectors = np.concatenate([embedder.embed(texts[at : at + TEXTS_PER_BATCH]) for at in starts])
        return fixed_binary(vectors.astype(np.float16)).cast(pa.binary()).take(pa.array(index, mask=index < 0))


_embedder = cache(load_embedder)  # a worker reads many files; logs that bring vectors may call their maker anything


@dataclass
class Facts:
    """What a file tells of the logs; the same for all its rows in any order."""

    num_rows: int = 0
    num_broken: int = 0
    num_bad: int = 0  # rows without a session
    first_bad: BadLine | None = None  # of those
    num_failed_calls: int = 0
    failed_lines: list[int] = field(default_factory=list)  # the first NAMED_LINES of them
    columns: set[str] = field(default_factory=set)  # with values
    widths: Counter[int] = field(default_factory=Counter)  # rows by numbers in their embedding
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)  # by model: nano-dollars, measured cells
    cuts: list[tuple[str, int]] = field(default_factory=list)  # session ids, and the bytes from each to the next

    def add(self, block: LogBlock, encoded: pa.Table, kind: Format, num_bad: int) -> None:
        """encoded: the block's rows with a session."""
        table = block.table
        self.num_bad += num_bad
        self.num_rows += table.num_rows
        self.num_broken += len(block.broken)
        self.num_failed_calls += len(block.failed_lines)
        self.failed_lines = [*self.failed_lines, *block.failed_lines][:NAMED_LINES]
        self.columns |= with_values(table)
        if "embedding" in table.column_names:
            self.widths.update(embedding_widths(table).tolist())
        for model, (nusd, count) in kind.sum_costs(table).items():
            before = self.costs.get(model, (0, 0))
            self.costs[model] = (before[0] + nusd, before[1] + count)
        self.cuts += _cuts(encoded)

    def to_json(self) -> Row:
        return {**vars(self), "columns": sorted(self.columns), "widths": list(self.widths.items())}


def _cuts(table: pa.Table) -> list[tuple[str, int]]:
    """Sessions at equal distances, and the bytes from each to the next; table: sorted by session."""
    num_rows = table.num_rows
    if not num_rows:
        return []
    rows = np.arange(0, num_rows, -(-num_rows // CUTS_PER_RUN))
    sizes = np.diff(rows, append=num_rows) * table.nbytes / num_rows
    return list(zip(table["session_id"].take(pa.array(rows)).to_pylist(), sizes.astype(int).tolist(), strict=True))


def _join_blocks(blocks: Iterable[LogBlock]) -> Iterator[LogBlock]:
    """Blocks of about RUN_ROWS rows or RUN_BYTES."""
    waiting: list[LogBlock] = []
    for block in blocks:
        waiting.append(block)
        tables = [one.table for one in waiting]
        if sum(t.num_rows for t in tables) >= RUN_ROWS or sum(t.nbytes for t in tables) >= RUN_BYTES:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(blocks: Sequence[LogBlock]) -> LogBlock:
    starts = np.cumsum([0, *(block.table.num_rows for block in blocks)]).tolist()
    return LogBlock(
        table=pa.concat_tables([block.table for block in blocks]).combine_chunks(),
        line=np.concatenate([block.line for block in blocks]),
        broken={
            start + row: reason
            for start, block in zip(starts, blocks, strict=False)
            for row, reason in block.broken.items()
        },
        failed_lines=tuple(line for block in blocks for line in block.failed_lines),
    )


def hash_ids(table: pa.Table) -> pa.Table:
    """Ids as the first 32 hex digits of their SHA-256."""
    for name in {"session_id", "group_id", "call_id"} & set(table.column_names):
        ids = table[name].to_pylist()
        hashes = [text and hashlib.sha256(text.encode()).hexdigest()[:32] for text in ids]
        table = table.set_column(table.column_names.index(name), name, pa.array(hashes, pa.string()))
    return table


def encode_run(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return bytes(sink.getvalue())
