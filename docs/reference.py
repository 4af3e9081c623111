"""Writes docs/reference.md: every command with its flags, the server's settings, and the library, read off the code.

python -m docs.reference
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from docs.reference_library import entries, settings
from seqroute_ray.cli import COMMANDS
from seqroute_ray.serving.replay_upstream import ReplayConfig

PAGE = Path(__file__).parent / "reference.md"
TITLE = (
    "# Reference\n\nMade of the code by `python -m docs.reference`; a test compares. Every command prints one JSON "
    "line on stdout, progress on stderr, and exits with 0 (ok), 1 (failed) or 2 (wrong usage).\n"
    "Flags of several commands that begin alike (`--cql.lr`) stand in "
    "[tables of their own](#flags-of-several-commands). What a command does, and why, is on its page in this folder.\n"
)
JOBS = (
    "The jobs of `jobs/` (`relabel`, `train`, `tune`, `evaluate`, `retrain`, `promote`) take the flags of the command "
    "of that name (`relabel` and `train` without `--dry-run`); `promote` those of `seqroute registry promote`.\n"
)
SETTINGS = (
    ("serving.config", "ServingConfig"),
    ("serving.config", "PolicySettings"),
    ("serving.config", "ShareSettings"),
    ("serving.config", "UpstreamConfig"),
    ("serving.keys", "KeyConfig"),
    ("serving.breaker", "BreakerConfig"),
    ("serving.ledgers.reaper", "ReaperConfig"),
)


class Flag(NamedTuple):
    """A row of a table."""

    name: str
    type: str
    default: str  # empty: required
    help: str

    @property
    def group(self) -> str:
        """What stands before its dot: `--cql` of `--cql.lr`."""
        return self.name.partition(".")[0] if "." in self.name else ""


class Command(NamedTuple):
    """A command, or one of the commands in it."""

    name: str
    help: str
    flags: tuple[Flag, ...]


def commands() -> Iterator[Command]:
    """All commands in the order of the command line; those inside others behind them."""
    for name, function in COMMANDS.items():
        yield from commands_of(f"seqroute {name}", function)
    yield from commands_of("python -m seqroute_ray.serving.replay_upstream", ReplayConfig)


def commands_of(name: str, function: Callable[..., Any]) -> Iterator[Command]:
    """What tyro makes of a function or of a class of settings, and the commands in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # get_parser is deprecated; tyro is pinned, and offers nothing in its place
        parser = tyro.extras.get_parser(function)
    yield from _commands(name, parser)


def _commands(name: str, parser: Any) -> Iterator[Command]:
    """parser: an ArgumentParser of tyro's own copy of argparse."""
    inner = [action for action in parser._actions if isinstance(action.choices, dict)]
    flags = [action for action in parser._actions if action not in inner and "--help" not in action.option_strings]
    yield Command(name, _line(parser.description), tuple(map(_flag, flags)))
    for action in inner:
        for inner_name, inner_parser in action.choices.items():
            yield from _commands(f"{name} {inner_name}", inner_parser)


def _flag(action: Any) -> Flag:
    """Of a parser's action, whose help ends in what tyro knows of it: `(default: 3)`, `(required)`, `(repeatable)`."""
    help_, _, noted = _line(action.help).rpartition("(")
    default = noted.removesuffix(")").partition("default: ")[2] or "none"
    kind = re.sub(r"\{None\}\||^\[|\]$", "", action.metavar or "").replace("STR|PATH", "PATH or URI")
    names = action.option_strings or [action.dest]
    if action.nargs == 0:  # a flag and the one that undoes it
        kind, names = "yes or no", names if default == "True" else names[:1]
    elif action.nargs == "*":
        kind = f"{kind.partition(' [')[0]}, any number"
    elif noted == "repeatable)":
        kind += ", repeatable"
    return Flag(" ".join(names), kind, "" if action.required else default, help_.strip())


def _line(text: str | None) -> str:
    return " ".join((text or "").replace("%%", "%").split())


def shared_flags(every: Iterable[Command]) -> dict[str, dict[str, Flag]]:
    """Flags with a dot by group and name. Raises ValueError where two commands differ in one."""
    shared: dict[str, dict[str, Flag]] = {}
    for command in every:
        for flag in command.flags:
            if flag.group and shared.setdefault(flag.group, {}).setdefault(flag.name, flag) != flag:
                raise ValueError(f"{command.name}: {flag.name} differs from another command's; document it there")
    return shared


def page() -> str:
    """The whole text."""
    every = list(commands())
    parts = [TITLE, "## Commands\n", *(_of_command(command) for command in every)]
    parts.append(JOBS)
    parts.append("## Flags of several commands\n")
    for group, flags in shared_flags(every).items():
        users = ", ".join(f"`{c.name}`" for c in every if any(flag.group == group for flag in c.flags))
        parts.append(f"### {group.removeprefix('--')}\n\n{users}\n\n{_table(flags.values())}")
    parts.append("## Settings of the server\n\nThe YAML file of `seqroute serve --config`: a ServingConfig.\n")
    parts += [_settings(*where) for where in SETTINGS]
    parts.append("## Library\n\nWhat the commands call, and what other programs may. Names are below `seqroute_ray`.\n")
    return "\n".join([*parts, *entries()])


def _of_command(command: Command) -> str:
    own = [flag for flag in command.flags if not flag.group]
    groups = dict.fromkeys(flag.group.removeprefix("--") for flag in command.flags if flag.group)
    links = ", ".join(f"[{group}](#{group})" for group in groups)
    parts = [f"### {command.name.removeprefix('seqroute ')}\n", f"`{command.name}`: {command.help}\n"]
    parts += [_table(own)] if own else []
    parts += [f"And the flags of {links}.\n"] if links else []
    return "\n".join(parts)


def _table(flags: Iterable[Flag]) -> str:
    rows = ["| flag | type | default | what |", "|---|---|---|---|"]
    rows += [
        f"| `{flag.name}` | {_cell(flag.type)} | {_default(flag.default)} | {_cell(flag.help)} |" for flag in flags
    ]
    return "\n".join(rows) + "\n"


def _settings(module: str, name: str) -> str:
    doc, fields = settings(module, name)
    rows = ["| setting | type | default | must be | what |", "|---|---|---|---|---|"]
    rows += [
        f"| `{field.name}` | {_cell(field.type)} | {_default(field.default)} | {field.rules} | {_cell(field.help)} |"
        for field in fields
    ]
    return f"### {name}\n\n{doc}\n\n" + "\n".join(rows) + "\n"


def _default(text: str) -> str:
    return f"`{_cell(text)}`" if text else "required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
