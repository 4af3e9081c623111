"""Import logs: check every row, embed the texts, group turns into sessions, put bad rows aside."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import DEFAULT_EMBEDDER, load_embedder, unit_rows
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.grouping import build_sessions
from seqroute_ray.core.log_schema import actions, codes, outcome_cells
from seqroute_ray.core.logs import BadRow, check_rows
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.catalogs import load_catalog
from seqroute_ray.data.log_files import LogFile, read_logs

TEXTS_PER_BATCH = 1024
VECTORS_PER_BATCH = 8192  # normalised at once, in float64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """One import. Each field is a flag of `seqroute import`."""

    logs: Path  # .parquet, .jsonl, .ndjson or .json (lines), in the log schema
    out: Path  # session file (Parquet); bad rows go to OUT.quarantine.jsonl
    catalog: Path | None = None  # JSON or YAML list of models and prices; None is the bundled catalog
    models: tuple[str, ...] = ()  # sub-pool, in the order of its actions; () is every model that occurs in the logs
    embedder: str = DEFAULT_EMBEDDER  # for texts; names the maker of the vectors where the logs bring embeddings
    max_bad_share: float = 0.01  # of rows that may be put aside; more is an error

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError(f"max_bad_share must be in [0, 1], got {self.max_bad_share}")
        if self.out.resolve() == self.logs.resolve():
            raise ConfigError(f"out must be another file than logs, got {self.out} for both")

    @property
    def quarantine(self) -> Path:
        return self.out.with_name(f"{self.out.name}.quarantine.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import read and wrote; num_turns = num_rows - num_bad_rows."""

    num_rows: int
    num_bad_rows: int  # put aside, with the other turns of their sessions
    num_sessions: int
    num_turns: int
    quarantine: Path | None  # None when no row is bad
    out: Path


def import_logs(config: ImportConfig) -> ImportReport:
    """Write the session file of a log file.

    Raises DataError when the file cannot be read or more than max_bad_share of its rows are bad (they are then in the
    quarantine file, and no session file is written); ConfigError and UnknownModelError for a wrong config.
    """
    catalog = load_catalog(config.catalog)
    catalog.select(config.models or catalog.names)  # a wrong name is an error before the work
    logs = read_logs(config.logs)
    bad = check_rows(logs.table, catalog, logs.origin, config.models)
    _write_quarantine(bad, logs, config)
    _refuse_too_many(bad, logs, config)
    clean = np.setdiff1d(np.arange(logs.table.num_rows), [row.row for row in bad])
    table = logs.table.take(pa.array(clean)) if bad else logs.table
    pool = catalog.select(config.models or _models_in(table, catalog))
    sessions = build_sessions(table, pool, config.embedder, _embeddings(table, config.embedder))
    temporary = config.out.with_name(f"{config.out.name}.tmp")
    try:
        write_sessions(sessions, temporary)
        os.replace(temporary, config.out)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("imported file=%s rows=%d bad_rows=%d", config.logs, logs.table.num_rows, len(bad))
    return ImportReport(
        num_rows=logs.table.num_rows,
        num_bad_rows=len(bad),
        num_sessions=sessions.num_sessions,
        num_turns=len(sessions.action),
        quarantine=config.quarantine if bad else None,
        out=config.out,
    )


def _write_quarantine(bad: list[BadRow], logs: LogFile, config: ImportConfig) -> None:
    """One JSON object a bad row, without its text; no bad rows leave no file."""
    if not bad:
        config.quarantine.unlink(missing_ok=True)
        return
    ids = logs.table.select(["session_id", "turn"]).take(pa.array([row.row for row in bad])).to_pylist()
    lines = [
        json.dumps({"file": str(config.logs), "line": logs.origin.line_of(row.row), "reason": row.reason, **names})
        for row, names in zip(bad, ids, strict=True)
    ]
    config.quarantine.parent.mkdir(parents=True, exist_ok=True)
    config.quarantine.write_text("\n".join(lines) + "\n")


def _refuse_too_many(bad: list[BadRow], logs: LogFile, config: ImportConfig) -> None:
    num_rows = logs.table.num_rows
    if not bad or (len(bad) <= config.max_bad_share * num_rows and len(bad) < num_rows):
        return
    first = next(row for row in bad if not row.is_spoiled)
    raise DataError(
        f"{config.logs}:{logs.origin.line_of(first.row)}: {first.reason}; {len(bad)} of {num_rows} rows cannot be used "
        f"({len(bad) / num_rows:.2%}, max_bad_share is {config.max_bad_share:.2%}), all are in {config.quarantine}"
    )


def _models_in(table: pa.Table, catalog: Catalog) -> tuple[str, ...]:
    """The models that occur in the logs, as the answering one or in outcomes, in catalog order."""
    seen = np.unique(actions(table["model"], catalog))
    if "outcomes" in table.column_names:
        seen = np.union1d(seen, outcome_cells(table, catalog).action)
    return tuple(catalog.names[action] for action in seen.tolist())


def _embeddings(table: pa.Table, embedder: str) -> NDArray[np.float16]:
    """[N, D] unit rows: the logs' own vectors where they bring them, else embedded texts, each distinct one once."""
    if "embedding" in table.column_names:
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        starts = range(0, len(vectors), VECTORS_PER_BATCH)
        parts = [unit_rows(vectors[at : at + VECTORS_PER_BATCH].astype(np.float64)) for at in starts]
        return np.concatenate(parts, dtype=np.float16, casting="same_kind")
    index, texts = codes(table["text"])
    model = load_embedder(embedder)
    starts = range(0, len(texts), TEXTS_PER_BATCH)
    parts = [model.embed(texts[at : at + TEXTS_PER_BATCH]) for at in starts]
    return np.concatenate(parts, dtype=np.float16, casting="same_kind")[index]
