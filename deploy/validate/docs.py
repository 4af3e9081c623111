"""A page of the docs: every command in it could run, and what it makes."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from deploy.validate.commands import simple_commands, wrong_command
from deploy.validate.dockerfile import FILE as DOCKERFILE
from deploy.validate.markdown import blocks, shell_lines
from deploy.validate.pins import Pins
from deploy.validate.problems import Problem, Problems, near, read_text

CLUSTER_PAGE = "docs/cluster.md"
IN_REPOSITORY = re.compile(r"(benchmarks|deploy|examples|jobs|serve_configs)/[^*\[]+$")
# Programs whose flags are not checked.
OTHERS = {
    "aws",
    "cat",
    "chmod",
    "cp",
    "curl",
    "docker",
    "export",
    "grep",
    "head",
    "helm",
    "kill",
    "kubectl",
    "make",
    "mkdir",
    "pip",
    "python",
    "redis-cli",
    "source",
    "sqlite3",
    "wait",
}


@dataclass(frozen=True)
class Docs:
    """A page."""

    root: Path
    file: str = CLUSTER_PAGE

    @cached_property
    def text(self) -> str:
        return read_text(self.root, self.file)

    def names(self, word: str) -> bool:
        return re.search(rf"\b{re.escape(word)}\b", self.text) is not None

    @cached_property
    def commands(self) -> list[tuple[int, list[str]]]:
        """The words of each command in its shell blocks, with the number of its line."""
        lines = [line for block in blocks(self.text) if block.language == "bash" for line in shell_lines(block)]
        return [(number, words) for number, line in lines for words in simple_commands(line)]

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
            yield Problem(docs.file, f"line {number}", f"{wrong}; correct the command")


def _wrong(root: Path, pins: Pins, words: list[str]) -> str | None:
    program = words[0]
    if missing := next((word for word in words if IN_REPOSITORY.match(word) and not (root / word).exists()), None):
        return f"{missing}: no such file in the repository"
    if program in ("ray", "serve", "seqroute") or (program == "python" and words[1].startswith("jobs/")):
        return wrong_command(root, words)
    if program not in OTHERS:
        return f"{program}: no program that a page may use; {near(program, OTHERS)}"
    if program == "python" and words[1] == "-m" and not _is_module(words[2]):
        return f"{words[2]}: no such module"
    if program == "make":
        return _wrong_make(root, words[1:])
    if words[:2] == ["docker", "build"]:
        return _wrong_build(pins, words)
    return _missing_file(root, words)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package in its name
        return False


def _wrong_make(root: Path, words: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z-]+):", read_text(root, "Makefile"), re.MULTILINE))
    asked = [word for word in words if "=" not in word]
    return next((f"make {t}: no target of Makefile; {near(t, targets)}" for t in asked if t not in targets), None)


def _missing_file(root: Path, words: list[str]) -> str | None:
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
