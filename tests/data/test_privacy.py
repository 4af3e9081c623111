"""Prompts never leave the logs; with drop_text ids do not either: not in files, log lines or errors."""

import hashlib
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.log_files import FormatName
from tests.data.formats.support import CATALOG
from tests.data.test_importer import config_of, row, write_lines

PROMPT, ID = "Umlaut-Zebra", "patient-4711"
SAYS = [{"role": "user", "content": PROMPT}]
USAGE = {"prompt_tokens": 1, "completion_tokens": 1}
OWN = {"turn": 0, "text": PROMPT, "model": "small", "quality": 1, "cost_usd": 0.1, "group_id": f"group-{ID}"}
CALL = {"created": 1, "request": {"messages": SAYS}, "response": {"model": "small", "usage": USAGE}}
SPEND = {"startTime": "2026-01-02", "model": "small", "spend": 0.1, "messages": SAYS}
EPISODE = {"task_id": ID, "score": 1, "steps": [{"text": PROMPT, "model": "small", "cost_usd": 0.1}]}

# Good lines and bad ones; {} is where a session's number goes.
LOGS: dict[FormatName, tuple[str, list[dict[str, object]], list[str]]] = {
    "seqroute": (
        "jsonl",
        [OWN],
        [
            json.dumps({"session_id": ID, "turn": PROMPT, "text": [PROMPT]}),
            json.dumps(OWN | {"session_id": f"other-{ID}", "quality": 7}),
            f'{{"session_id": "{ID}", "text": "{PROMPT}',
            json.dumps([PROMPT, ID]),
        ],
    ),
    "openai-chat": (
        "jsonl",
        [CALL],
        [
            json.dumps(CALL | {"session_id": f"a-{ID}", "created": PROMPT}),
            json.dumps(
                CALL | {"session_id": f"b-{ID}", "request": {"messages": [{"role": "tool", "content": PROMPT}]}}
            ),
            json.dumps(CALL | {"session_id": f"c-{ID}", "error": PROMPT}),
            json.dumps(
                CALL | {"session_id": f"d-{ID}", "response": {"id": [PROMPT], "usage": {"prompt_tokens": PROMPT}}}
            ),
        ],
    ),
    "litellm": (
        "jsonl",
        [SPEND],
        [
            json.dumps(SPEND | {"session_id": f"a-{ID}", "spend": PROMPT}),
            json.dumps(SPEND | {"session_id": f"b-{ID}", "messages": f"[{PROMPT}"}),
            json.dumps(SPEND | {"session_id": f"c-{ID}", "startTime": PROMPT, "request_id": [ID]}),
            json.dumps(SPEND | {"session_id": f"d-{ID}", "status": "failure"}),
        ],
    ),
    "trajectory": (
        "jsonl",
        [EPISODE],
        [
            json.dumps(EPISODE | {"session_id": f"a-{ID}", "score": PROMPT}),
            json.dumps(EPISODE | {"session_id": f"b-{ID}", "steps": [PROMPT]}),
            json.dumps(EPISODE | {"session_id": f"c-{ID}", "steps": [{"text": {"of": PROMPT}, "model": "small"}]}),
        ],
    ),
    "wide": (
        "csv",
        [],
        [
            f"a-{ID},{PROMPT},{PROMPT},1",
            f"b-{ID},{PROMPT},{PROMPT},1,1",
            f"c-{ID},{PROMPT},1,",
        ],
    ),
}


def write_logs(folder: Path, format_name: FormatName, num_good: int) -> tuple[Path, list[str]]:
    suffix, templates, bad = LOGS[format_name]
    ids = [f"{ID}-{number}" for number in range(num_good)]
    good = [json.dumps(template | {"session_id": session_id}) for template in templates for session_id in ids]
    if format_name == "wide":
        good = ["query_id,text,small|quality,small|cost", *(f"{session_id},{PROMPT},1,1" for session_id in ids)]
    path = folder / f"logs.{suffix}"
    path.write_text("\n".join([*good, *bad]))
    return path, ids


def everything_in(folder: Path) -> str:
    """All bytes that an import wrote, those of the session file compressed and as values."""
    sessions = folder / "sessions.parquet"
    texts = [path.read_bytes().decode("latin-1") for path in folder.iterdir()]
    if sessions.exists():
        table = pq.read_table(sessions)
        texts += [str(table.to_pydict()), str(table.schema.metadata)]
    return "\n".join(texts)


@pytest.mark.parametrize("drop_text", [False, True])
@pytest.mark.parametrize("format_name", LOGS)
def test_no_prompt_and_no_hidden_id_is_in_what_an_import_writes_logs_or_raises(
    format_name: FormatName, drop_text: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logs, ids = write_logs(tmp_path, format_name, num_good=3)
    judgements = write_lines(tmp_path / "judgements.jsonl", [{"session_id": ids[0], "turn": 0, "quality": 1}])
    out = tmp_path / "out"
    config = ImportConfig(
        logs=(logs,),
        out=out / "sessions.parquet",
        format=format_name,
        catalog=CATALOG,
        judgements=judgements,
        max_bad_share=0.9,
        drop_text=drop_text,
        runner="local",
    )
    report = import_logs(config)
    assert (report.num_sessions, report.num_bad_rows > 0) == (3, True)
    seen = everything_in(out) + caplog.text
    wrong = write_lines(tmp_path / "wrong.jsonl", [{"session_id": ID, "turn": 9, "quality": 1, "judge": PROMPT}])
    for fields in ({"max_bad_share": 0.0}, {"judgements": wrong, "max_bad_share": 0.9}):
        with pytest.raises(DataError) as caught:
            import_logs(ImportConfig(**{name: getattr(config, name) for name in FIELDS} | fields))
        seen += str(caught.value) + everything_in(out)
    assert PROMPT not in seen
    assert (ID in seen) != drop_text


def test_an_interrupted_import_leaves_no_text_and_no_id(tmp_path: Path) -> None:
    def stop(what: str, _done: int, _total: int) -> None:
        if what == "ranges":
            raise KeyboardInterrupt

    line = json.dumps(CALL | {"session_id": ID, "id": f"call-{ID}", "user": ID})
    logs = tmp_path / "logs.jsonl"
    logs.write_text(line)
    out = tmp_path / "out" / "s.parquet"
    config = ImportConfig(logs=(logs,), out=out, format="openai-chat", catalog=CATALOG, drop_text=True, runner="local")
    with pytest.raises(KeyboardInterrupt):
        import_logs(config, stop)
    left = [path for path in out.parent.rglob("*") if path.is_file()]
    seen = [str(pq.read_table(path).to_pydict()) if path.suffix == ".parquet" else path.read_text() for path in left]
    assert any("session_id" in text for text in seen)
    assert not any(PROMPT in text or ID in text for text in seen)


FIELDS = ("logs", "out", "format", "catalog", "judgements", "drop_text", "runner")


@settings(deadline=None, max_examples=25)  # the machine may be busy
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
def test_a_dropped_id_is_its_sha_256_in_sessions_and_quarantine(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    rows = [row(name, 0, group_id=f"{name}!", embedding=[1.0]), row(f"{name}?", 0, embedding=[1.0], quality=2)]
    config = config_of(write_lines(folder / "logs.jsonl", rows), drop_text=True, max_bad_share=0.5)
    sessions = read_sessions(import_logs(config).out)
    assert sessions.session_id.tolist() == [hashed(name)]
    assert sessions.group_id.tolist() == [hashed(f"{name}!")]
    assert json.loads(Path(config.quarantine).read_text())["session_id"] == hashed(f"{name}?")


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
