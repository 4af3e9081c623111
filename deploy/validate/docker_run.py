"""Runs what the Dockerfile's images would run of pip and python, stage by stage, in plain virtual environments.

Docker is not needed. Commands of the system (apt-get, useradd) are left out, and say so; the build context is what
.dockerignore lets through, copied where the stage copies it.
"""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from deploy.validate.commands import simple_commands
from deploy.validate.dockerfile import FILE, Dockerfile, Instruction, sources_of
from deploy.validate.problems import Problem

logger = logging.getLogger(__name__)
PROGRAMS = ("python", "pip")
LAST_LINES = 3  # of a failed command's output


def run_stages(root: Path) -> list[Problem]:
    """The first command of each image that fails; [] when all succeed."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    dockerfile = Dockerfile(root)
    bases = {stage.base for stage in dockerfile.stages.values()}
    failed = (_run_stage(root, dockerfile, name) for name in dockerfile.stages if name not in bases)
    return [problem for problem in failed if problem]


def _run_stage(root: Path, dockerfile: Dockerfile, name: str) -> Problem | None:
    with tempfile.TemporaryDirectory(prefix=f"seqroute-{name}-") as scratch:
        workdir, environment = Path(scratch) / "workdir", Path(scratch) / "venv"
        workdir.mkdir()
        instructions = dockerfile.whole(name)
        venv.create(environment, with_pip=any(each.name == "RUN" and "pip" in each.args for each in instructions))
        args: dict[str, str] = {}
        for instruction in instructions:
            if instruction.name == "ARG":
                key, _, default = instruction.args.partition("=")
                args[key] = os.environ.get(key, default)
            elif instruction.name == "COPY":
                _copy(root, workdir, instruction)
            elif instruction.name == "RUN":
                problem = _run(name, instruction, workdir, environment / "bin", args)
                if problem:
                    return problem
    return None


def _copy(root: Path, workdir: Path, copy: Instruction) -> None:
    """Into the working directory, which every COPY of the file names relatively."""
    destination = shlex.split(copy.args)[-1]
    target = workdir / destination
    if destination.endswith("/"):
        target.mkdir(parents=True, exist_ok=True)
    for source in map(root.joinpath, sources_of(copy)):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def _run(stage: str, run: Instruction, workdir: Path, programs: Path, args: dict[str, str]) -> Problem | None:
    line = re.sub(r"\$\{(\w+)\}", lambda found: args.get(found.group(1), ""), run.args)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    for words in simple_commands(line):
        if words[0] not in PROGRAMS:
            logger.info("%s: left out: %s", stage, shlex.join(words))
            continue
        logger.info("%s: %s", stage, shlex.join(words))
        command = [str(programs / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=workdir, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
            return Problem(
                FILE, f"line {run.line}", f"{shlex.join(words)}: exit code {done.returncode} in {stage}: {said}"
            )
    return None
