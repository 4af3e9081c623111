"""What the tests of pages share: which there are, a copy of the repository to follow one in, a shell that does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.validate.markdown import Block, blocks

ROOT = Path(__file__).parent.parent
README, GUIDE = "README.md", "docs/guide.md"
NOT_COPIED = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info")
MARK = "=== block"
MAX_S = 600


def pages() -> list[str]:
    """All Markdown pages, from the root."""
    folders = ("", "docs", "seqroute_ray/data/bundled", "tests/data/fixtures", "examples/own_logs")
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).glob("*.md"))]


def blocks_of(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text())


def copy_repository(to: Path) -> Path:
    """What a clone has; installed, in the environment that runs the tests."""
    return Path(shutil.copytree(ROOT, to, ignore=NOT_COPIED))


@dataclass(frozen=True)
class Followed:
    """A page's shell blocks after they ran."""

    folder: Path  # of the repository's copy
    outputs: tuple[str, ...]  # by block, stdout alone

    def json_of(self, block: int) -> list[Any]:
        """The objects that a block printed, each from the start of a line."""
        return json_objects(self.outputs[block])


def follow(texts: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> Followed:
    """Run shell blocks in one shell, as somebody would who copies them; the first command that fails ends it.

    Whatever a block left running is ended, too.
    """
    script = folder.with_name("follow.sh")
    script.write_text("set -euo pipefail\n" + "".join(f"echo '{MARK}'\n{text}" for text in texts))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), **(env or {})}  # PYTHONPATH: the copy's code
    said, complained = script.with_suffix(".out"), script.with_suffix(".err")
    with said.open("w") as out, complained.open("w") as err:
        shell = subprocess.Popen(
            ["bash", script], cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = shell.wait(MAX_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
    outputs = said.read_text().split(f"{MARK}\n")[1:]
    assert code == 0, f"in block {len(outputs)}: {texts[len(outputs) - 1]}{outputs[-1]}{complained.read_text()[-3000:]}"
    return Followed(folder, tuple(outputs))


def json_objects(text: str) -> list[Any]:
    """The JSON objects in a text that begin at the start of a line; they may go on over several."""
    decoder, found, end = json.JSONDecoder(), [], 0
    for begin in re.finditer(r"^\{", text, re.MULTILINE):
        if begin.start() >= end:
            with suppress(ValueError):
                value, end = decoder.raw_decode(text, begin.start())
                found.append(value)
    return found


def with_free_ports(text: str, ports: Mapping[int, int]) -> str:
    """A page names ports that others may have on this machine: the one change to what it says."""
    for named, free in ports.items():
        text = re.sub(rf"\b{named}\b", str(free), text)
    return text
