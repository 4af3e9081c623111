"""docs/cluster.md: every command in it could run, and what it makes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from deploy.validate.commands import simple_commands, wrong_command
from deploy.validate.dockerfile import FILE as DOCKERFILE
from deploy.validate.pins import Pins
from deploy.validate.problems import Problem, Problems, near, read_text

FILE = "docs/cluster.md"
# Programs whose flags are not checked.
OTHERS = {
    "aws",
    "cat",
    "chmod",
    "curl",
    "export",
    "helm",
    "kubectl",
    "mkdir",
    "pip",
    "python",
    "redis-cli",
    "docker",
    "make",
}


@dataclass(frozen=True)
class Docs:
    """The page."""

    root: Path

    @cached_property
    def text(self) -> str:
        return read_text(self.root, FILE)

    def names(self, word: str) -> bool:
        return re.search(rf"\b{re.escape(word)}\b", self.text) is not None

    @cached_property
    def commands(self) -> list[tuple[int, list[str]]]:
        """The words of each command in its shell blocks, with the number of its line."""
        return [(number, words) for number, line in self._lines() for words in simple_commands(line)]

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Lines of shell blocks, joined where one ends in a backslash, without comments."""
        inside, joined, start = False, "", 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.startswith("```"):
                inside = line.strip() == "```bash"
            elif inside:
                start = start if joined else number
                joined += re.sub(r"(^|\s)#.*$", "", line).removesuffix("\\")
                if not line.endswith("\\"):
                    yield start, joined
                    joined = ""

    @cached_property
    def made(self) -> set[tuple[str, str]]:
        """Kind and name of what its `kubectl create secret | configmap` commands make."""
        made: set[tuple[str, str]] = set()
        for _, words in self.commands:
            if words[:3] == ["kubectl", "create", "secret"]:
                made.update(("secret", name) for name in words[4:5])
            elif words[:3] == ["kubectl", "create", "configmap"]:
                made.update(("configmap", name) for name in words[3:4])
        return made


def check_docs(root: Path, pins: Pins, docs: Docs) -> Problems:
    """Raises BrokenFileError."""
    for number, words in docs.commands:
        if wrong := _wrong(root, pins, words):
            yield Problem(FILE, f"line {number}", f"{wrong}; correct the command")


def _wrong(root: Path, pins: Pins, words: list[str]) -> str | None:
    program = words[0]
    if program in ("ray", "serve", "seqroute"):
        return wrong_command(root, words)
    if program not in OTHERS:
        return f"{program}: no program that the page may use; {near(program, OTHERS)}"
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", read_text(root, "Makefile"), re.MULTILINE))
        return next(
            (f"make {t}: no target of Makefile; {near(t, targets)}" for t in words[1:] if t not in targets), None
        )
    if words[:2] == ["docker", "build"]:
        return _wrong_build(pins, words)
    for flag, file in pairwise(words):
        path = file.rpartition("=")[2]
        path = path.removeprefix("file://")
        named = flag in ("-f", "-c") or file.startswith(("--from-file=", "file://"))
        if named and not path.startswith(("~", "-")) and not (root / path).exists():
            return f"{path}: no such file in the repository"
    return None


def _wrong_build(pins: Pins, words: list[str]) -> str | None:
    flags = dict(pairwise(words))
    if flags.get("-f") != DOCKERFILE:
        return f"docker build -f {flags.get('-f')}: must be {DOCKERFILE}"
    if flags.get("--target") not in pins.stages:
        return f"--target {flags.get('--target')}: no stage of {DOCKERFILE}; known: {', '.join(pins.stages)}"
    return pins.wrong_image(flags.get("-t", ""))
