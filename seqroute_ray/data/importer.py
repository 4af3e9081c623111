"""Import logs: read, judge, check every row, embed the texts, group turns into sessions, put bad rows aside."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import tyro
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import DEFAULT_EMBEDDER, load_embedder, unit_rows
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.grouping import build_sessions
from seqroute_ray.core.log_schema import actions, codes, outcome_cells
from seqroute_ray.core.logs import BadRow, check_rows
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.catalogs import add_priced, load_catalog
from seqroute_ray.data.judgements import judge
from seqroute_ray.data.log_files import FormatName, Logs, read_logs

TEXTS_PER_BATCH = 1024
VECTORS_PER_BATCH = 8192  # normalised at once, in float64

Repeatable = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """One import. Each field is a flag of `seqroute import`."""

    logs: tuple[Path, ...]  # files, or folders of them; in whatever order, the sessions are the same
    out: Path  # session file (Parquet); bad rows go to OUT.quarantine.jsonl
    format: FormatName = "seqroute"  # whose logs: the own log schema, or one of docs/import.md
    judgements: Path | None = None  # JSONL or Parquet of session_id, turn, quality; it wins over the logs' quality
    catalog: Path | None = None  # JSON or YAML list of models and prices; None is the bundled catalog
    price: Repeatable = ()  # MODEL=INPUT/OUTPUT adds a model at that price, in USD per million tokens: my-llm=0.15/0.6
    models: tuple[str, ...] = ()  # sub-pool, in the order of its actions; () is every model that occurs in the logs
    embedder: str = DEFAULT_EMBEDDER  # for texts; names the maker of the vectors where the logs bring embeddings
    max_bad_share: float = 0.01  # of rows that may be put aside; more is an error
    drop_text: bool = False  # session files never hold texts; with this, ids are SHA-256 hashes there and in quarantine

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError(f"max_bad_share must be in [0, 1], got {self.max_bad_share}")
        if not self.logs:
            raise ConfigError("logs needs at least one file or folder, got none")
        inputs = {path.resolve() for path in (*self.logs, *filter(None, [self.judgements, self.catalog]))}
        if self.out.resolve() in inputs:
            raise ConfigError(f"out must be another file than logs, judgements and catalog, got {self.out} for both")
        if self.out.resolve().parent in inputs:  # the next import would read it
            raise ConfigError(f"out must be outside the folders of logs, got {self.out}")

    @property
    def quarantine(self) -> Path:
        return self.out.with_name(f"{self.out.name}.quarantine.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import read and wrote; num_turns = num_rows - num_bad_rows."""

    num_rows: int
    num_failed_calls: int  # left out: no rows
    num_bad_rows: int  # put aside, with the other turns of their sessions
    num_sessions: int
    num_turns: int
    quarantine: Path | None  # None when no row is bad
    out: Path


def import_logs(config: ImportConfig) -> ImportReport:
    """Write the session file of logs.

    Raises DataError when a file cannot be read, no turn is judged, a judgement is wrong, or more than max_bad_share of
    the rows are bad (they are then in the quarantine file, and no session file is written); ConfigError and
    UnknownModelError for a wrong config.
    """
    catalog = add_priced(load_catalog(config.catalog), config.price)
    catalog.select(config.models or catalog.names)  # a wrong name is an error before the work
    logs = read_logs(config.logs, config.format)
    bad = check_rows(logs.table, catalog, logs.origin, config.models)
    _write_quarantine(bad, logs, config)
    _refuse_too_many(bad, logs, config)
    table = _clean_table(logs, bad, config)
    pool = catalog.select(config.models or _models_in(table, catalog))
    sessions = build_sessions(table, pool, config.embedder, _embeddings(table, config.embedder))
    temporary = config.out.with_name(f"{config.out.name}.tmp")
    try:
        write_sessions(sessions, temporary)
        os.replace(temporary, config.out)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("imported out=%s rows=%d bad_rows=%d", config.out, logs.table.num_rows, len(bad))
    return ImportReport(
        num_rows=logs.table.num_rows,
        num_failed_calls=logs.num_failed_calls,
        num_bad_rows=len(bad),
        num_sessions=sessions.num_sessions,
        num_turns=len(sessions.action),
        quarantine=config.quarantine if bad else None,
        out=config.out,
    )


def _clean_table(logs: Logs, bad: list[BadRow], config: ImportConfig) -> pa.Table:
    """The rows that are not bad with their final qualities and ids, in the order of sessions and turns."""
    table = logs.table if config.judgements is None else judge(logs.table, config.judgements)
    table = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), [row.row for row in bad])))
    if table["quality"].null_count == table.num_rows:
        files = ", ".join(map(str, config.logs))
        raise DataError(f"{files}: no row has quality; bring some by --judgements FILE (session_id, turn, quality)")
    table = _hash_ids(table) if config.drop_text else table
    return table.sort_by([("session_id", "ascending"), ("turn", "ascending")])


def _hash_ids(table: pa.Table) -> pa.Table:
    """Session and group ids as the first 32 hex digits of their SHA-256."""
    for name in {"session_id", "group_id"} & set(table.column_names):
        ids = table[name].to_pylist()
        hashes = [text and hashlib.sha256(text.encode()).hexdigest()[:32] for text in ids]
        table = table.set_column(table.column_names.index(name), name, pa.array(hashes, pa.string()))
    return table


def _write_quarantine(bad: list[BadRow], logs: Logs, config: ImportConfig) -> None:
    """One JSON object a bad row, without its text; no bad rows leave no file."""
    if not bad:
        config.quarantine.unlink(missing_ok=True)
        return
    ids = logs.table.select(["session_id", "turn"]).take(pa.array([row.row for row in bad]))
    ids = _hash_ids(ids) if config.drop_text else ids
    origin = logs.origin
    lines = [
        json.dumps({"file": origin.file[row.row], "line": int(origin.line[row.row]), "reason": row.reason, **names})
        for row, names in zip(bad, ids.to_pylist(), strict=True)
    ]
    config.quarantine.parent.mkdir(parents=True, exist_ok=True)
    config.quarantine.write_text("\n".join(lines) + "\n")


def _refuse_too_many(bad: list[BadRow], logs: Logs, config: ImportConfig) -> None:
    num_rows = logs.table.num_rows
    if not bad or (len(bad) <= config.max_bad_share * num_rows and len(bad) < num_rows):
        return
    first = next(row for row in bad if not row.is_spoiled)
    raise DataError(
        f"{logs.origin.place(first.row)}: {first.reason}; {len(bad)} of {num_rows} rows cannot be used "
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
