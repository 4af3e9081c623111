"""docs/reference.md is what the code gives, and says something of everything in it."""

from pathlib import Path

import pytest

from deploy.validate.commands import _config_of as config_of
from docs.reference import PAGE, SETTINGS, Command, commands, commands_of, page, shared_flags
from docs.reference_library import LIBRARY, PACKAGE, settings
from seqroute_ray.cli import COMMANDS as NAMES

from .pages import ROOT

COMMANDS = list(commands())


def test_the_page_is_what_the_code_gives() -> None:
    assert PAGE.read_text() == page(), "the code has changed: run `python -m docs.reference`"


def test_every_command_is_in_it() -> None:
    names = {command.name.split()[1] for command in COMMANDS if command.name.startswith("seqroute ")}
    assert names == set(NAMES)
    assert {"seqroute ledger export", "seqroute registry rollback"} <= {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_and_flag_has_a_help_text_and_a_type(command: Command) -> None:
    assert command.help
    assert [flag.name for flag in command.flags if not (flag.help and flag.type)] == []


def test_flags_of_several_commands_are_the_same_in_all() -> None:
    users = [command.name for command in COMMANDS if any(flag.name == "--cql.lr" for flag in command.flags)]
    assert users == ["seqroute train", "seqroute tune", "seqroute retrain"]
    assert "--cql.lr" in shared_flags(COMMANDS)["--cql"]


@pytest.mark.parametrize(("module", "name"), SETTINGS)
def test_every_setting_of_the_server_has_a_help_text(module: str, name: str) -> None:
    _, fields = settings(module, name)
    assert [field.name for field in fields if not field.help] == []


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda job: job.stem)
def test_a_job_takes_the_flags_of_its_command(job: Path) -> None:
    name = "seqroute registry promote" if job.stem == "promote" else f"seqroute {job.stem}"
    [command] = [command for command in COMMANDS if command.name == name]
    [of_job] = commands_of(job.name, config_of(job))
    alone = {"--dry-run"} if job.stem in ("relabel", "train") else set()
    assert {flag.name for flag in command.flags} - {flag.name for flag in of_job.flags} == alone


def test_every_module_of_the_library_is_a_file() -> None:
    modules = {module for part in LIBRARY.values() for module in part}
    assert [module for module in modules if not (PACKAGE / f"{module.replace('.', '/')}.py").is_file()] == []
