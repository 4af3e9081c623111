"""Whether a command could run: programs, files and flags, parsed by their own parsers; nothing is executed."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import tyro

from seqroute_ray.cli import COMMANDS
from seqroute_ray.core.errors import SeqRouteError

RULES, HELP = (
    re.compile(r" -{3,}"),
    re.compile(r" (For full helptext|Argument helptext|Arguments are applied).*"),
)  # tyro's


def wrong_command(root: Path, words: Sequence[str]) -> str | None:
    """Why a command of this project or of Ray cannot run; None when it can, or when its program is not known here."""
    program, *rest = words
    if program == "seqroute":
        return wrong_seqroute(tuple(rest))
    if program == "python" and rest and rest[0].endswith(".py"):
        return wrong_job(root, rest[0], rest[1:])
    if program in ("ray", "serve"):
        return wrong_ray(root, words)
    return None


@functools.cache
def wrong_seqroute(args: tuple[str, ...]) -> str | None:
    """By the real parser, whose commands do nothing here."""
    inert = {name: _inert(command) for name, command in COMMANDS.items()}
    return _refusal(lambda: tyro.extras.subcommand_cli_from_dict(inert, prog="seqroute", args=list(args)))


def _inert(command: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(command)
    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    return nothing


def wrong_job(root: Path, script: str, args: Sequence[str]) -> str | None:
    """script: relative to the root."""
    path = root / script
    if not path.is_file():
        known = ", ".join(sorted(f"jobs/{job.name}" for job in (root / "jobs").glob("*.py")))
        return f"{script}: no such file; known: {known}"
    config = _config_of(path)
    if config is None:
        return f"{script}: its flags cannot be told; it must give run_job or tyro.cli a class that it imports"
    return _wrong_flags(config, script, tuple(args))


@functools.cache
def _wrong_flags(config: Any, script: str, args: tuple[str, ...]) -> str | None:
    return _refusal(lambda: tyro.cli(config, prog=script, args=list(args)))


def _config_of(script: Path) -> Any:
    """The class whose fields are the flags of a job: what the script gives to run_job or tyro.cli."""
    tree = ast.parse(script.read_text())
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("run_job", "tyro.cli")
            and ast.unparse(node.args[0]) in imported
        ):
            module, name = imported[ast.unparse(node.args[0])]
            return getattr(importlib.import_module(str(module)), name)
    return None


def _refusal(parse: Callable[[], Any]) -> str | None:
    """What tyro says, in one line; also what a config's own rules say."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parse()
    except SystemExit:
        return HELP.sub("", RULES.sub("", " ".join(said.getvalue().split())))[:300]
    except SeqRouteError as error:
        return str(error)
    return None


def wrong_ray(root: Path, words: Sequence[str]) -> str | None:
    """By the click parsers of `ray` and `serve`; for `ray job submit` also the command behind `--`."""
    at = list(words).index("--") if "--" in words else len(words)
    own, submitted = list(words[:at]), list(words[at + 1 :])
    refused = _wrong_click(own + (["--", *submitted] if submitted else []))
    if refused:
        return refused
    if own[:3] == ["ray", "job", "submit"]:
        return wrong_command(root, submitted) if submitted else "ray job submit: names no command behind `--`"
    inner = simple_commands(own[-1]) if own[:2] == ["ray", "exec"] else []
    return next((wrong for words in inner if (wrong := wrong_command(root, words))), None)


def _wrong_click(words: Sequence[str]) -> str | None:
    program, *rest = words
    command = _click_programs()[program]
    name = program
    while isinstance(command, click.Group):
        sub = rest.pop(0) if rest else ""
        found = command.get_command(click.Context(command), sub)
        if found is None:
            return f"{sub!r}: no command of `{name}`; see `{name} --help`"
        command, name = found, f"{name} {sub}"
    try:
        command.make_context(name, rest)
    except click.UsageError as error:
        return f"{name}: {error.format_message()}"
    return None


@functools.cache
def _click_programs() -> dict[str, click.Command]:
    from ray.scripts.scripts import cli as ray_cli
    from ray.serve.scripts import cli as serve_cli

    return {"ray": ray_cli, "serve": serve_cli}


@functools.cache
def ray_start_flags() -> set[str]:
    """Without their dashes, as KubeRay's rayStartParams name them."""
    from ray.scripts.scripts import start

    return {flag.removeprefix("--") for parameter in start.params for flag in parameter.opts}


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a shell line, without assignments before it and redirections behind it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set(";&|"):
            commands.append([])
        elif set(word) <= set("<>&"):
            redirected = True
            if commands[-1][-1:] in (["1"], ["2"]):  # of `2>`
                commands[-1].pop()
        elif redirected:
            redirected = False
        elif commands[-1] or not re.match(r"[A-Z_]+=", word):
            commands[-1].append(word)
    return [command for command in commands if command]
