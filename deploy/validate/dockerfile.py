"""deploy/Dockerfile: stages and images resolve, what is copied is there, what is installed is pinned."""

import fnmatch
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from deploy.validate.commands import simple_commands
from deploy.validate.pins import PYTHON_TAG, Pins
from deploy.validate.problems import Problem, Problems, near, read_text

FILE = "deploy/Dockerfile"
IGNORE = ".dockerignore"
KNOWN = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER"}
NO_TORCH = "serving"  # the stage of a replica


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    args: str


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    line: int
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    """The parsed file."""

    root: Path

    @cached_property
    def stages(self) -> dict[str, Stage]:
        stages: dict[str, Stage] = {}
        current = Stage("", "", 0)
        for instruction in _instructions(read_text(self.root, FILE)):
            if instruction.name == "FROM":
                base, *alias = re.split(r"(?i)\s+as\s+", instruction.args)
                name = alias[0] if alias else base
                current = stages[name] = Stage(name, base, instruction.line)
            else:
                current.instructions.append(instruction)
        return stages

    def whole(self, name: str) -> list[Instruction]:
        """A stage's instructions, behind those of the stages it starts from."""
        stage = self.stages[name]
        above = self.whole(stage.base) if stage.base in self.stages and stage.base != name else []
        return above + stage.instructions

    def in_repository(self, image: str, word: str) -> str | None:
        """A word of a command in an image, with a path of the image as the repository's; None when it is not copied."""
        stage = image.partition(":")[0].rsplit("/", 1)[-1].removeprefix("seqroute-")
        if stage not in self.stages:
            return word
        workdir = next((each.args for each in self.whole(stage) if each.name == "WORKDIR"), "/")
        if not PurePosixPath(word).is_relative_to(workdir):
            return word
        inside = PurePosixPath(word).relative_to(workdir)
        copied = [source for each in self.whole(stage) if each.name == "COPY" for source in sources_of(each)]
        return str(inside) if any(inside.is_relative_to(source) for source in copied) else None


def _instructions(text: str) -> Iterator[Instruction]:
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not joined and not line.strip()):
            continue
        start = start if joined else number
        joined += line.rstrip().removesuffix("\\") + " "
        if not line.rstrip().endswith("\\"):
            name, _, args = joined.strip().partition(" ")
            yield Instruction(start, name.upper(), args.strip())
            joined = ""


def sources_of(copy: Instruction) -> list[str]:
    """What a COPY takes from the repository."""
    words = shlex.split(copy.args)
    return (
        [] if any(word.startswith("--from=") for word in words) else [w for w in words if not w.startswith("--")][:-1]
    )


def check_dockerfile(root: Path, dockerfile: Dockerfile, pins: Pins) -> Problems:
    """Raises BrokenFileError."""
    before: set[str] = set()
    for stage in dockerfile.stages.values():
        if stage.base not in before and not PYTHON_TAG.match(stage.base):
            way_out = f"{near(stage.base, before) if before else 'name one'} or python:3.11.14-slim-bookworm"
            yield Problem(
                FILE, f"line {stage.line}", f"{stage.base}: no stage above and no pinned image of Python; {way_out}"
            )
        before.add(stage.name)
        for instruction in stage.instructions:
            yield from _check_instruction(root, instruction, before)
            yield from _check_pip(instruction, pins)
    for name in dockerfile.stages.keys() - {stage.base for stage in dockerfile.stages.values()}:
        yield from _check_image(dockerfile, name)


def _check_instruction(root: Path, instruction: Instruction, stages: set[str]) -> Problems:
    where = f"line {instruction.line}"
    if instruction.name not in KNOWN:
        yield Problem(
            FILE, where, f"{instruction.name}: no instruction that is used here; {near(instruction.name, KNOWN)}"
        )
    elif instruction.name == "COPY":
        for stage in re.findall(r"--from=(\S+)", instruction.args):
            if stage not in stages:
                yield Problem(FILE, where, f"{stage}: no stage above; {near(stage, stages)}")
        for source in sources_of(instruction):
            if not (root / source).exists():
                yield Problem(FILE, where, f"{source}: no such file in the repository; correct it")
            elif is_ignored(root, source):
                yield Problem(FILE, where, f"{source}: {IGNORE} keeps it out of the build; add !{source} there")


def is_ignored(root: Path, path: str) -> bool:
    """By .dockerignore: the last rule that fits the path or a folder above it decides."""
    ignored = False
    for line in read_text(root, IGNORE).splitlines():
        rule = line.strip().removeprefix("!").rstrip("/")
        if rule and not rule.startswith("#"):
            above = [path, *map(str, PurePosixPath(path).parents)][:-1] or [path]
            if any(fnmatch.fnmatch(each, rule) for each in above):
                ignored = not line.strip().startswith("!")
    return ignored


def _check_pip(instruction: Instruction, pins: Pins) -> Problems:
    if instruction.name != "RUN":
        return
    where = f"line {instruction.line}"
    for words in simple_commands(instruction.args):
        if "pip" not in words or "install" not in words:
            continue
        if words[words.index("install") + 1 :][:2] != ["-c", "constraints.txt"]:
            yield Problem(FILE, where, "pip install: versions must be pinned; write pip install -c constraints.txt ...")
        for word in words:
            if wrong := pins.wrong_extras(word):
                yield Problem(FILE, where, wrong)


def _check_image(dockerfile: Dockerfile, name: str) -> Problems:
    """What holds for a stage that becomes an image."""
    instructions, line = dockerfile.whole(name), dockerfile.stages[name].line
    users = [each.args for each in instructions if each.name == "USER"]
    if not users or users[-1] in ("root", "0"):
        yield Problem(FILE, f"line {line}", f"{name}: an image must not run as root; end it with USER ray")
    installs = [each for each in instructions if each.name == "RUN" and "pip install" in each.args]
    heavy = [each for each in installs if re.search(r"\btorch\b|\btrain\b", each.args)]
    if name == NO_TORCH and heavy:
        yield Problem(
            FILE, f"line {heavy[0].line}", "torch: a replica needs none; install .[serve] alone in this stage"
        )
