"""Import logs: files are read, sorted and embedded one by one, then checked and grouped range by range of session ids.

Files and ranges are tasks, done by Ray Data's workers or in this process. Between the two steps stands what only all
rows together tell; behind them one session file, whose bytes depend neither on the runner nor on how the rows were cut
into files.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import tyro

from seqroute_ray import __version__
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import DEFAULT_EMBEDDER
from seqroute_ray.core.errors import ConfigError, DataError, SeqRouteError, StoppedError
from seqroute_ray.core.log_schema import LOG_SCHEMA, require_columns
from seqroute_ray.core.storage import FileState, Folder, Location, files_in, local_path, one_line, remove
from seqroute_ray.data.catalogs import add_priced, load_catalog
from seqroute_ray.data.importing.assemble import assemble_quarantine, assemble_sessions
from seqroute_ray.data.importing.bad_lines import BadLine
from seqroute_ray.data.importing.ranges import Ranges
from seqroute_ray.data.importing.staging import Staging
from seqroute_ray.data.importing.whole import Whole, runs_of
from seqroute_ray.data.judgements import JUDGEMENTS, find_judgements
from seqroute_ray.data.log_files import FORMATS, Format, FormatName, find_logs
from seqroute_ray.data.runners import WORKER, Row, RunnerName
from seqroute_ray.data.tries import run_all

Repeatable = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
Progress = Callable[[str, int, int], None]  # (what: files or ranges; done; in all)

KEY = re.compile("[0-9a-f]{16}")  # of an import, see _key
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """One import. Each field is a flag of `seqroute import`."""

    logs: tuple[Location, ...]  # files or folders of them, paths or URIs; in whatever order, the sessions are the same
    out: Location  # session file (Parquet), a path or URI; bad rows go to OUT.quarantine.jsonl
    format: FormatName = "seqroute"  # whose logs: the own log schema, or one of docs/import.md
    judgements: Location | None = None  # JSONL or Parquet of session_id, turn, quality; it wins over the logs' quality
    catalog: Path | None = None  # JSON or YAML list of models and prices; None is the bundled catalog
    price: Repeatable = ()  # MODEL=INPUT/OUTPUT adds a model at that price, in USD per million tokens: my-llm=0.15/0.6
    models: tuple[str, ...] = ()  # sub-pool, in the order of its actions; () is every model that occurs in the logs
    embedder: str = DEFAULT_EMBEDDER  # for texts; names the maker of the vectors where the logs bring embeddings
    max_bad_share: float = 0.01  # of rows that may be put aside; more is an error
    drop_text: bool = False  # no text is ever written but in the logs; with this, ids are SHA-256 hashes too
    runner: RunnerName = "ray"  # local: in this process, without Ray

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError(f"max_bad_share must be in [0, 1], got {self.max_bad_share}")
        if not self.logs:
            raise ConfigError("logs needs at least one file or folder, got none")
        beside = [path for path in (self.judgements, self.catalog) if path is not None]
        inputs = {_place(path) for path in (*self.logs, *beside)}
        if _place(self.out) in inputs:
            raise ConfigError(f"out must be another file than logs, judgements and catalog, got {self.out} for both")
        if _place(self.out).rpartition("/")[0] in inputs:  # the next import would read it
            raise ConfigError(f"out must be outside the folders of logs, got {self.out}")

    @property
    def quarantine(self) -> str:
        return f"{self.out}.quarantine.jsonl"

    @property
    def unfinished(self) -> Folder:
        """What an import that was killed leaves, for the next one to go on with."""
        return Folder.at(f"{self.out}.unfinished")


def _place(location: Location) -> str:
    """The same for all spellings of a local path."""
    return str(local_path(location) or location).rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import read and wrote; num_turns = num_rows - num_bad_rows."""

    num_files: int
    num_rows: int
    num_failed_calls: int  # left out: no rows
    num_bad_rows: int  # put aside, with the other turns of their sessions
    num_sessions: int
    num_turns: int
    quarantine: str | None  # None when no row is bad
    out: Location
    runner: str
    num_workers: int  # distinct workers that did at least one file or range
    num_resumed: int  # files and ranges that an import which was killed had done already


def import_logs(config: ImportConfig, progress: Progress = lambda _what, _done, _total: None) -> ImportReport:
    """Write the session file of logs. Ray must be initialised for runner=ray.

    Raises DataError when a file cannot be read, no turn is judged, a judgement is wrong, or more than max_bad_share of
    the rows are bad (they are then in the quarantine file, and no session file is written); ConfigError and
    UnknownModelError for a wrong config.
    """
    inputs = check(config)
    try:
        report = _import(config, inputs, progress)
    except StoppedError:
        raise  # it goes on with what is finished
    except SeqRouteError:
        _clean_up(config)
        raise
    _clean_up(config)
    log.info("event=imported out=%s rows=%d bad_rows=%d", config.out, report.num_rows, report.num_bad_rows)
    return report


@dataclass(frozen=True)
class Inputs:
    """What an import reads."""

    catalog: Catalog
    files: tuple[FileState, ...]
    judgements: tuple[FileState, ...]  # one or none

    @property
    def label(self) -> str:
        """The logs, in an error."""
        first, others = self.files[0].location, len(self.files) - 1
        return f"{first} and {others} more" if others else first


def _clean_up(config: ImportConfig) -> None:
    """Delete what this import, and earlier ones that were killed, left; other people's files are not touched."""
    try:
        names = config.unfinished.names()
        for key in {name.partition("/")[0] for name in names}:
            if KEY.fullmatch(key):
                Folder.at(f"{config.unfinished}/{key}").delete_all()
        if all(KEY.fullmatch(name.partition("/")[0]) for name in names):
            config.unfinished.delete_all()
    except (SeqRouteError, OSError) as error:  # the import is done, or failed for a better reason
        log.warning("event=left_behind folder=%s error=%s", config.unfinished, one_line(error))


def check(config: ImportConfig) -> Inputs:
    """What is wrong with a config is an error before the work. Raises as import_logs."""
    if files_in(config.out) is not None:
        raise ConfigError(f"out must be a file, {config.out} is a folder; name a file in it")
    catalog = add_priced(load_catalog(config.catalog), config.price)
    catalog.select(config.models or catalog.names)
    files = find_logs(config.logs, FORMATS[config.format])
    judgements = [] if config.judgements is None else [find_judgements(config.judgements)]
    return Inputs(catalog, tuple(files), tuple(judgements))


def _import(config: ImportConfig, inputs: Inputs, progress: Progress) -> ImportReport:
    folder = Folder.at(f"{config.unfinished}/{_key(config, inputs)}")
    kind = FORMATS[config.format]
    read = _stage(config, folder, kind, inputs.files, progress)
    _tell_of_failed_calls(read, inputs.files)
    whole = Whole.of(read, folder, inputs.catalog)
    if whole.num_rows == 0:
        raise DataError(f"{inputs.label}: every call failed; an import needs calls with answers")
    scores = _stage(config, folder, JUDGEMENTS, inputs.judgements, progress)
    ranges = Ranges(
        folder=folder,
        files=tuple(file.location for file in inputs.files),
        kind=kind,
        whole=whole,
        judgement_runs=runs_of(scores) if inputs.judgements else None,
        catalog=inputs.catalog,
        models=config.models,
        embedder=config.embedder,
    )
    names = [f"{folder}: range {at}" for at in range(len(whole.starts) + 1)]
    built = run_all(config.runner, names, ranges.build, lambda done, total: progress("ranges", done, total))
    num_bad = _put_aside(config, whole, folder, [*read, *built], inputs.label)
    _check_judged(config, [*scores, *built], inputs.label)
    seen = {name for row in built for name in row["models"]}
    pool = inputs.catalog.select(config.models or [name for name in inputs.catalog.names if name in seen])
    parts = [name for row in built for name in row["files"] if name.endswith(".parquet")]
    assemble_sessions(folder, parts, pool, config.out)
    done = (*read, *scores, *built)
    return ImportReport(
        num_files=len(inputs.files),
        num_rows=whole.num_rows,
        num_failed_calls=whole.num_failed_calls,
        num_bad_rows=num_bad,
        num_sessions=sum(row["num_sessions"] for row in built),
        num_turns=sum(row["num_turns"] for row in built),
        quarantine=config.quarantine if num_bad else None,
        out=config.out,
        runner=config.runner,
        num_workers=len({row[WORKER] for row in done if not row["resumed"]}),
        num_resumed=sum(row["resumed"] for row in done),
    )


def _key(config: ImportConfig, inputs: Inputs) -> str:
    """What an import is made of: of the same key, the work of one that was killed goes on."""
    files = [*inputs.files, *inputs.judgements]
    settings = (config.format, config.models, config.embedder, config.drop_text, inputs.catalog.to_json())
    once = uuid4().hex if any(file.changed_ns is None for file in files) else ""  # who knows whether they changed
    terms = [__version__, settings, inputs.files, inputs.judgements, once]
    return hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:16]


def _stage(
    config: ImportConfig, folder: Folder, kind: Format, files: tuple[FileState, ...], progress: Progress
) -> list[Row]:
    staging, what = Staging(folder, files, kind, config.embedder, config.drop_text), f"files of {kind.name}"
    names = [file.location for file in files]
    return run_all(config.runner, names, staging.stage, lambda done, total: progress(what, done, total))


def _tell_of_failed_calls(read: Sequence[Row], files: Sequence[FileState]) -> None:
    for row, file in zip(read, files, strict=True):
        if row["num_failed_calls"]:
            lines = ",".join(map(str, row["failed_lines"]))
            log.warning(
                "event=left_out_failed_calls file=%s calls=%d first_lines=%s",
                file.location,
                row["num_failed_calls"],
                lines,
            )


def _put_aside(config: ImportConfig, whole: Whole, folder: Folder, done: Sequence[Row], label: str) -> int:
    """Write the quarantine file; no bad rows leave none. Returns how many. Raises DataError when they are too many.

    done: rows of files, then of ranges.
    """
    if whole.num_broken < whole.num_rows:  # else no column tells anything
        names = {name for row in done for name in row["columns"]}
        require_columns(names & set(LOG_SCHEMA.names), label)
    num_bad: int = sum(row["num_bad"] for row in done)
    if not num_bad:
        remove(config.quarantine)
        return 0
    parts = [name for row in done for name in row["files"] if name.endswith(".bad.jsonl")]
    assemble_quarantine(folder, parts, config.quarantine)
    if num_bad > config.max_bad_share * whole.num_rows or num_bad == whole.num_rows:
        first = min(BadLine(*row["first_bad"]) for row in done if row["first_bad"])
        raise DataError(
            f"{first}; {num_bad} of {whole.num_rows} rows cannot be used "
            f"({num_bad / whole.num_rows:.2%}, max_bad_share is {config.max_bad_share:.2%}), all are in "
            f"{config.quarantine}"
        )
    return num_bad


def _check_judged(config: ImportConfig, done: Sequence[Row], label: str) -> None:
    """Raises DataError for the first judgement that cannot be used, and when no turn is judged.

    done: rows of files of judgements, then of ranges.
    """
    nameless = [BadLine(*row["first_bad"]) for row in done if "wrong_judgement" not in row and row["first_bad"]]
    wrong = [(bad.row, bad.line, bad.reason) for bad in nameless]
    wrong += [tuple(row["wrong_judgement"]) for row in done if row.get("wrong_judgement")]
    if wrong:
        _, line, reason = min(wrong)
        raise DataError(f"{config.judgements}:{line}: {reason}")
    if not any(row.get("num_judged") for row in done):
        raise DataError(f"{label}: no row has quality; bring some by --judgements FILE (session_id, turn, quality)")
