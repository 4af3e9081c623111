"""Build one range of sessions: check its rows, put bad ones aside, judge, group."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.dataset import sha256
from seqroute_ray.core.embedding import unit_rows
from seqroute_ray.core.grouping import build_sessions
from seqroute_ray.core.log_schema import actions, conform, outcome_cells, with_values
from seqroute_ray.core.logs import BadRow, Origin, check_rows
from seqroute_ray.core.sessions import Sessions, to_table
from seqroute_ray.core.storage import Folder, resolve
from seqroute_ray.data.importing.bad_lines import BadLine, quarantine_lines
from seqroute_ray.data.importing.staging import BROKEN, FILE, LINE, ROW, VECTOR
from seqroute_ray.data.importing.whole import Whole
from seqroute_ray.data.judgements import judge
from seqroute_ray.data.log_files import Format
from seqroute_ray.data.receipts import finished, write_or_refuse
from seqroute_ray.data.runners import Row, Task

VECTORS_PER_BATCH = 8192  # normalised at once, in float64


class Staged(NamedTuple):
    """The rows of a range in the order of files and rows, without the columns of their places."""

    table: pa.Table
    file: NDArray[np.int64]  # [N] index
    row: NDArray[np.int64]  # [N] in its file
    line: NDArray[np.int64]  # [N]
    broken: dict[int, str]
    vectors: pa.ChunkedArray | None


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The work on one range of session ids, with what every worker needs to know. Picklable."""

    folder: Folder
    files: tuple[str, ...]  # names of the log files
    kind: Format
    whole: Whole
    judgement_runs: tuple[str, ...] | None  # None: no judgements
    catalog: Catalog
    models: tuple[str, ...]  # the pool; () is what occurs
    embedder: str

    def build(self, task: Task) -> Row:
        """Write the sessions and the bad rows of range `at`, or find them there; counts and what is wrong."""
        at = task["at"]
        receipt, terms = f"ranges/{at:05d}.json", {"at": at, "bounds": list(self.whole.starts[max(at - 1, 0) : at + 1])}
        found = finished(self.folder, receipt, terms, lambda row: row["files"])
        if found is not None:
            return {**found, "resumed": True}
        staged = self._read(at, self.whole.runs)
        table = self.kind.finish(staged.table, self.whole.dearest, self.catalog)
        names = with_values(table)
        table = conform(table, set(self.whole.columns))
        origin = Origin(file=np.array(self.files, dtype=object)[staged.file], line=staged.line, broken=staged.broken)
        bad = check_rows(table, self.catalog, origin, self.models, self.whole.elsewhere)
        lines = _bad_lines(bad, table, staged, origin)
        table, wrong_judgement = self._judged(at, table)
        good = pa.array(np.setdiff1d(np.arange(table.num_rows), [row.row for row in bad]))
        clean = table.take(good)
        files = {f"ranges/{at:05d}.bad.jsonl": quarantine_lines(sorted(lines, key=lambda line: line.session_id or ""))}
        models: tuple[str, ...] = ()
        if clean.num_rows:
            pool = self.catalog.select(self.models or models_in(clean, self.catalog))
            vectors = staged.vectors.take(good) if staged.vectors is not None else None
            sessions = build_sessions(clean, pool, self.embedder, embeddings(clean, vectors))
            files[f"ranges/{at:05d}.parquet"], models = encode_sessions(sessions), pool.names
        for name, content in files.items():
            write_or_refuse(self.folder, name, content)
        row = {
            **terms,
            "files": {name: sha256(content) for name, content in files.items()},
            "num_bad": len(bad),
            "first_bad": next((line for row, line in zip(bad, lines, strict=True) if not row.is_spoiled), None),
            "wrong_judgement": wrong_judgement,
            "columns": sorted(names),
            "models": models,
            "num_judged": clean.num_rows - clean["quality"].null_count,
            "num_sessions": len(clean["session_id"].unique()),
            "num_turns": clean.num_rows,
        }
        write_or_refuse(self.folder, receipt, json.dumps(row).encode())
        return {**row, "resumed": False}

    def _judged(self, at: int, table: pa.Table) -> tuple[pa.Table, tuple[int, int, str] | None]:
        """The rows with the qualities of judgements, and row, line and fault of the first one that cannot be used."""
        if self.judgement_runs is None:
            return table, None
        judgements = self._read(at, self.judgement_runs)
        table, wrong = judge(table, judgements.table, judgements.broken)
        return table, wrong and (int(judgements.row[wrong.row]), int(judgements.line[wrong.row]), wrong.reason)

    def _read(self, at: int, runs: tuple[str, ...]) -> Staged:
        """The rows of the range's sessions."""
        session, starts = pc.field("session_id"), self.whole.starts
        chosen = session >= starts[at - 1] if at else session.is_valid()
        if at < len(starts):
            chosen &= session < starts[at]
        tables = []
        for run in runs:
            filesystem, path = resolve(f"{self.folder}/{run}")
            tables.append(pq.read_table(path, filesystem=filesystem, filters=chosen))
        table = pa.concat_tables(tables).sort_by([(FILE, "ascending"), (ROW, "ascending")]).combine_chunks()
        reasons = table[BROKEN].to_pylist()
        return Staged(
            table=table.drop_columns(list({FILE, ROW, LINE, BROKEN, VECTOR} & set(table.column_names))),
            file=table[FILE].to_numpy(),
            row=table[ROW].to_numpy(),
            line=table[LINE].to_numpy(),
            broken={row: reason for row, reason in enumerate(reasons) if reason},
            vectors=table[VECTOR] if VECTOR in table.column_names else None,
        )


def _bad_lines(bad: Sequence[BadRow], table: pa.Table, staged: Staged, origin: Origin) -> list[BadLine]:
    ids = table.select(["session_id", "turn"]).take(pa.array([row.row for row in bad], pa.int64())).to_pylist()
    return [
        BadLine(
            at=int(staged.file[row.row]),
            row=int(staged.row[row.row]),
            file=str(origin.file[row.row]),
            line=int(origin.line[row.row]),
            reason=row.reason,
            **names,
        )
        for row, names in zip(bad, ids, strict=True)
    ]


def models_in(table: pa.Table, catalog: Catalog) -> tuple[str, ...]:
    """The models that occur in clean rows, as the answering one or in outcomes, in catalog order."""
    seen = np.unique(actions(table["model"], catalog))
    if "outcomes" in table.column_names:
        seen = np.union1d(seen, outcome_cells(table, catalog).action)
    return tuple(catalog.names[action] for action in seen.tolist())


def embeddings(table: pa.Table, vectors: pa.ChunkedArray | None) -> NDArray[np.float16]:
    """[N, D] unit rows: the logs' own embeddings where they bring them, else the vectors of their texts."""
    if "embedding" not in table.column_names:
        assert vectors is not None  # noqa: S101 - a format has embeddings or texts
        return np.frombuffer(b"".join(vectors.to_pylist()), dtype="<f2").reshape(table.num_rows, -1)
    own = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    starts = range(0, len(own), VECTORS_PER_BATCH)
    parts = [unit_rows(own[at : at + VECTORS_PER_BATCH].astype(np.float64)) for at in starts]
    return np.concatenate(parts, dtype=np.float16, casting="same_kind")


def encode_sessions(sessions: Sessions) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(sessions), sink, compression="zstd")
    return bytes(sink.getvalue())
