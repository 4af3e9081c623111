"""The decision log as logs to train from: answered turns and their feedback, in Parquet of core.log_schema."""

import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.ledger import Ledger, LoggedTurn, SessionLog
from seqroute_ray.core.log_schema import LOG_SCHEMA
from seqroute_ray.core.money import NUSD_PER_USD

_NAMES = (
    "session_id",
    "turn",
    "embedding",
    "model",
    "quality",
    "cost_usd",
    "prompt_tokens",
    "completion_tokens",
    "propensity",
    "source",
)
SCHEMA = pa.schema([LOG_SCHEMA.field(name) for name in _NAMES])
_PAGE = 500  # sessions in a row group


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written."""

    num_sessions: int
    num_turns: int
    num_judged_turns: int
    num_cut_sessions: int  # left out: their first turns were answered before the ledger kept them
    watermark: int  # the next export's `since`
    out: Path


async def export_decisions(ledger: Ledger, out: Path, since: int = 0) -> ExportReport:
    """Write the sessions whose log changed after the watermark `since`, each whole: an import takes no half session.

    A session that goes on is in a later export again, whole: import the later file in its place. Raises ConfigError
    when the file cannot be written.
    """
    part, counts, watermark = out.with_name(f"{out.name}.part"), Counter[str](), since
    try:
        with pq.ParquetWriter(part, SCHEMA) as writer:
            async for number, logs in _pages(ledger, since):
                whole = [log for log in logs if log.turns and log.turns[0].record["turn"] == 0]
                rows = [row for log in whole for row in rows_of(log)]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                counts.update(
                    sessions=len(whole), turns=len(rows), cut=sum(bool(log.turns) for log in logs) - len(whole)
                )
                counts.update(judged=sum(row["quality"] is not None for row in rows))
                watermark = number
        os.replace(part, out)
    except OSError as error:
        raise ConfigError(f"out {out}: cannot be written ({error.strerror}); name a file in a folder") from error
    return ExportReport(
        num_sessions=counts["sessions"],
        num_turns=counts["turns"],
        num_judged_turns=counts["judged"],
        num_cut_sessions=counts["cut"],
        watermark=watermark,
        out=out,
    )


def rows_of(log: SessionLog) -> list[dict[str, Any]]:
    """A session's rows in SCHEMA. The session's own score is that of its last turn, unless that turn has one."""
    rows = [_row(turn) for turn in log.turns]
    if rows and rows[-1]["quality"] is None and log.feedback:
        rows[-1]["quality"] = log.feedback[-1].score
    return rows


def _row(turn: LoggedTurn) -> dict[str, Any]:
    record, feedback = turn.record, turn.record["feedback"]
    copied = ("session_id", "turn", "model", "prompt_tokens", "completion_tokens", "propensity")
    return {name: record.get(name) for name in copied} | {
        "embedding": np.frombuffer(turn.embedding, dtype=np.float16).astype(np.float32),
        "source": record.get("task_type") or None,
        "quality": feedback[-1]["score"] if feedback else None,  # the last one: they are sorted by time
        "cost_usd": record["cost_nusd"] / NUSD_PER_USD,
    }


async def _pages(ledger: Ledger, since: int) -> AsyncIterator[tuple[int, list[SessionLog]]]:
    """(number of the last change, sessions), page by page; ends where a session comes again that changed meanwhile."""
    done = set[str]()
    while page := await ledger.changed(since, _PAGE):
        logs = []
        for number, session_id in page:
            if session_id in done:
                break  # it took the number after all that there were: the next export goes on with it
            logs.append(await ledger.session_log(session_id))
            done.add(session_id)
            since = number
        if not logs:
            return
        yield since, logs
