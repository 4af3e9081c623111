"""cluster.yaml: the commands that set up and start its nodes."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.validate.commands import simple_commands, wrong_command
from deploy.validate.pins import Pins
from deploy.validate.problems import Problem, Problems

LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
HOME = "/home/ray/"  # of the container's user
# What `ray start` must say there; the dashboard's host has a rule of its own.
MUST_SAY = {
    "head_start_ray_commands": ("--head", "--num-cpus=0", "--autoscaling-config", "--metrics-export-port"),
    "worker_start_ray_commands": ("--address", "--metrics-export-port"),
}


def check_commands(root: Path, file: str, config: dict[str, Any], pins: Pins) -> Problems:
    """Flags, files and extras of every command; and what `ray start` must say."""
    for where, line in _lines(config):
        for words in simple_commands(line):
            yield from _check_words(root, file, where, words, config, pins)
    for name, flags in MUST_SAY.items():
        starts = [
            words for line in config.get(name, []) for words in simple_commands(line) if words[:2] == ["ray", "start"]
        ]
        if len(starts) != 1:
            yield Problem(file, name, f"{len(starts)} times `ray start`: must be once; write it in full")
            continue
        for flag in flags:
            if not any(word == flag or word.startswith(f"{flag}=") for word in starts[0]):
                yield Problem(
                    file, name, f"`ray start` without {flag}: every {name.split('_')[0]} must have it; add it"
                )
        if "head" in name:
            yield from _check_dashboard(file, name, starts[0])


def _lines(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every command with its place."""
    for name in LISTS:
        yield from ((f"{name}.{index}", line) for index, line in enumerate(config.get(name, [])))
    for node, settings in config["available_node_types"].items():
        for name in ("initialization_commands", "worker_setup_commands"):
            for index, line in enumerate(settings.get(name, [])):
                yield f"available_node_types.{node}.{name}.{index}", line


def _check_dashboard(file: str, where: str, start: list[str]) -> Problems:
    hosts = [word.partition("=")[2] for word in start if word.startswith("--dashboard-host")]
    host = hosts[0] if hosts else "none named"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        rule = "the dashboard takes jobs and must listen on loopback only"
        yield Problem(file, where, f"--dashboard-host {host}: {rule}; write --dashboard-host=127.0.0.1")


def _check_words(root: Path, file: str, where: str, words: list[str], config: dict[str, Any], pins: Pins) -> Problems:
    if wrong := wrong_command(root, words):
        yield Problem(file, where, f"{wrong}; correct the command")
    for word in words:
        path, _, extras = word.partition("[")
        if wrong := extras and pins.wrong_extras(word):
            yield Problem(file, where, wrong)
        mounts = config["file_mounts"]
        if path.startswith(HOME) and not any(PurePosixPath(path).is_relative_to(mounted) for mounted in mounts):
            yield Problem(file, where, f"{path}: lies in no file mount; correct it or mount it")
        if (local := _in_repository(path, mounts)) and not (root / local).exists():
            yield Problem(
                file, where, f"{path}: {local} is not in the repository, from where it is mounted; correct it"
            )
    if words[:2] == ["pip", "install"] and "-c" not in words:
        yield Problem(file, where, "`pip install` without -c: versions must be pinned; add -c .../constraints.txt")


def _in_repository(path: str, mounts: dict[str, str]) -> PurePosixPath | None:
    """Where a path of a node comes from, when it comes from the repository."""
    for target, source in mounts.items():
        if not str(source).startswith("~") and PurePosixPath(path).is_relative_to(target):
            return PurePosixPath(source) / PurePosixPath(path).relative_to(target)
    return None
