"""A round's sessions: what is new in the logs, imported, split by a hash, and joined with all that was there before."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from seqroute_ray import stages
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.random_bits import text_keys, uniform
from seqroute_ray.core.sessions import Sessions, open_sessions, read_sessions, write_parts
from seqroute_ray.core.storage import Location, files_in, state_of
from seqroute_ray.data.catalogs import load_catalog
from seqroute_ray.data.importer import ImportConfig
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.serving.ledgers.commands import existing_ledger

SPLIT_SEED = 20_261  # of the hash: another one would move sessions that were learned from into the holdout


LOOSE = ("out", "runner", "dry_run", "force", "canary", "redis_password_env")  # change nothing of policy and judgement


def key_of(config: RetrainConfig) -> str:
    """Of settings and given files (name, size, time): of the same key, and no new decisions, the same result."""
    settings = {name: value for name, value in asdict(config).items() if name not in LOOSE}
    files = [files_in(place) or state_of(place) for place in (*config.logs, config.base, config.judgements) if place]
    terms = json.dumps([settings, files], sort_keys=True, default=str)
    return hashlib.sha256(terms.encode()).hexdigest()[:16]


def num_changed(config: RetrainConfig, since: int) -> int:
    """Sessions of the ledger that changed after a watermark; 0 without a ledger."""
    if config.ledger is None:
        return 0

    async def count() -> int:
        after, seen = since, set[str]()
        async with existing_ledger(str(config.ledger), config.redis_password_env) as ledger:
            while page := await ledger.changed(after, 1000):
                seen |= {session for _, session in page}
                after = page[-1][0]
        return len(seen)

    return asyncio.run(count())


def export(config: RetrainConfig, since: int, out: Path) -> dict[str, Any]:
    """Write the decision log that changed after a watermark."""
    if config.ledger is None:
        return {"num_sessions": 0, "watermark": since, "out": None}
    from seqroute_ray.serving.decision_log import export_decisions

    async def write() -> Any:
        async with existing_ledger(str(config.ledger), config.redis_password_env) as ledger:
            return await export_decisions(ledger, out, since)

    report = asyncio.run(write())
    return {
        "num_sessions": report.num_sessions,
        "num_judged_turns": report.num_judged_turns,
        "watermark": report.watermark,
        "out": str(out) if report.num_sessions else None,
    }


def import_new(config: RetrainConfig, exported: str | None, catalog: Path, embedder: str, out: Path) -> dict[str, Any]:
    """Session file of the new logs, over the models of the catalog. Raises DataError."""
    logs = (*([] if exported is None else [exported]), *config.logs)
    imported = stages.import_(
        ImportConfig(
            logs=logs,
            out=out,
            judgements=config.judgements,
            catalog=catalog,
            models=load_catalog(catalog).names,
            embedder=embedder,
            max_bad_share=config.max_bad_share,
            runner=config.runner,
        )
    )
    return {name: imported[name] for name in ("num_sessions", "num_turns", "num_bad_rows")}


def join(before: Location | None, new: Path, test_share: float, out: Path) -> dict[str, Any]:
    """All sessions, each once: the new ones behind the earlier ones that did not come again; new ones get a part.

    A session is in memory only with its row group. Raises DataError when the earlier ones are of another embedder.
    """
    fresh = with_parts(read_sessions(new), test_share)
    again = set(fresh.session_id.tolist())
    write_parts(_all(before, fresh, again), out)
    parts = fresh.part.tolist()
    return {
        "num_new_sessions": fresh.num_sessions,
        "num_new_test_sessions": parts.count("test"),
        "num_sessions": pq.read_metadata(out).num_rows,
    }


def _all(before: Location | None, fresh: Sessions, again: set[str]) -> Iterator[Sessions]:
    if before is not None:
        with open_sessions(before) as file:
            num_groups = file.num_row_groups
        for group in range(num_groups):
            earlier = read_sessions(before, [group])
            if earlier.embedder != fresh.embedder:
                raise DataError(
                    f"{before}: vectors of embedder {earlier.embedder!r}, the new logs' are of {fresh.embedder!r}; "
                    "a policy reads those of one embedder"
                )
            kept = earlier.take(np.array([name not in again for name in earlier.session_id.tolist()], dtype=np.bool_))
            kept = _in_fit_unless_named(kept)
            yield kept.over(fresh.catalog)
    yield fresh


def _in_fit_unless_named(sessions: Sessions) -> Sessions:
    """The current version learned from sessions of a base without parts: none of them may judge."""
    return replace(sessions, part=np.where(sessions.part == "", "fit", sessions.part).astype(np.str_))


def with_parts(sessions: Sessions, test_share: float) -> Sessions:
    """Where none is named: by a hash of the group of the first turn, which in a decision log is the session."""
    group = sessions.group_id[sessions.offsets[:-1]]
    is_test = uniform(text_keys(SPLIT_SEED, group.tolist()), 0) < test_share
    part = np.where(sessions.part == "", np.where(is_test, "test", "fit"), sessions.part)
    return replace(sessions, part=part.astype(np.str_))


def holdout(new: Path, test_share: float) -> Sessions:
    """The new sessions of part test. Raises DataError when there are none."""
    return with_parts(read_sessions(new), test_share).of_part("test")


def catalog_file(catalog: Catalog, out: Path) -> Path:
    """The catalog as `seqroute import` reads it."""
    out.write_text(json.dumps(catalog.to_json()))
    return out
