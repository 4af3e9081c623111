"""docs/runbook.md against the code: commands parse; metrics, codes and log lines exist; links lead somewhere."""

import re
from pathlib import Path

import pytest

from deploy.validate.commands import simple_commands, wrong_command
from seqroute_ray.serving.metrics import Metrics, PrometheusBackend

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/runbook.md").read_text()
SOURCES = "\n".join(path.read_text() for path in (ROOT / "seqroute_ray").rglob("*.py"))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 20
    assert {kind for kind, _ in BLOCKS} == {"bash", "yaml", "json", "log"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_parses(line: str) -> None:
    command = line.split("  #")[0]
    for words in simple_commands(command):
        assert wrong_command(ROOT, words) is None
        assert words[0] in ("curl", "grep", "redis-cli", "sqlite3", "cp", "seqroute", "serve"), words


def test_every_metric_exists() -> None:
    exposed = (Metrics(PrometheusBackend()).exposition() or b"").decode()
    known = set(re.findall(r"# TYPE (seqroute_\w+) ", exposed))
    named = set(re.findall(r"\bseqroute_(?!ray)\w+", PAGE))
    assert len(named) > 8
    assert named <= known


def test_every_error_code_is_in_the_table_of_the_api() -> None:
    table = (ROOT / "docs/api.md").read_text()
    for code in re.findall(r"\b[45]\d\d `([a-z_]+)`", PAGE):
        assert f"`{code}`" in table or code.startswith("upstream_"), code


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "log"])
def test_every_log_line_begins_as_the_code_writes_it(block: str) -> None:
    for line in block.splitlines():
        event = re.sub(r"^(WARNING|ERROR|INFO) [\w.]+ ", "", line).split(" ")[0]
        words = event if event.startswith("event=") else f"{event} "
        assert words.rstrip() in SOURCES or re.sub(r"_\w+$", "_%s", words) in SOURCES, line


def test_links_within_the_page_lead_to_its_sections() -> None:
    sections = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert target in sections
    for name in re.findall(r"\]\((\w+\.md)", PAGE):
        assert (ROOT / "docs" / name).is_file()
