"""What the tests of all formats share: an import of one file, its sessions as turns, its error as it is printed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.embedding import WordLlamaEmbedder
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import Sessions, read_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.log_files import FormatName

FIXTURES = Path(__file__).parent.parent / "fixtures"
CATALOG = FIXTURES / "catalog.yaml"
Turn = tuple[str, str, float | None, int]  # session, model, quality or None, cost in nano-dollars
PUT_ASIDE = (
    "; 1 of 1 rows cannot be used (100.00%, max_bad_share is 1.00%), all are in sessions.parquet.quarantine.jsonl"
)


def imported(logs: Path, out: Path, format_name: FormatName, **fields: Any) -> Sessions:
    given = {"format": format_name, "catalog": CATALOG, "runner": "local", **fields}
    config = ImportConfig(logs=(logs,), out=out / "sessions.parquet", **given)
    return read_sessions(import_logs(config).out)


def turns(sessions: Sessions) -> list[Turn]:
    ids = np.repeat(sessions.session_id, sessions.num_turns).tolist()
    models = [sessions.catalog.names[action] for action in sessions.action.tolist()]
    quality = [None if np.isnan(value) else value for value in sessions.quality.tolist()]
    return list(zip(ids, models, quality, sessions.cost_nusd.tolist(), strict=True))


def assert_texts(sessions: Sessions, texts: list[str]) -> None:
    np.testing.assert_array_equal(sessions.embedding, WordLlamaEmbedder().embed(texts).astype(np.float16))


def refusal(content: bytes, name: str, format_name: FormatName, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error that a file gets; its name in it is relative."""
    monkeypatch.chdir(folder)
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        imported(Path(name), Path(), format_name)
    assert not Path("sessions.parquet").exists()
    return str(caught.value)
