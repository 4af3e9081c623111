"""`make validate-deploy` on this repository, and on copies of it with one mistake each."""

import re
import shutil
from pathlib import Path

import pytest

from deploy.validate.__main__ import ValidateConfig, main
from deploy.validate.checks import validate
from deploy.validate.commands import simple_commands, wrong_command
from deploy.validate.docker_run import run_stages
from seqroute_ray.serving.config import load_config

from .planted_mistakes import DOCKERFILE, MISTAKES, Mistake

ROOT = Path(__file__).parent.parent
CHECKED = ("cluster.yaml", "deploy", "serve_configs", "jobs", "docs", "constraints.txt", "pyproject.toml", "Makefile")
COPIED = ("README.md", "LICENSE", ".dockerignore")  # into the images


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy to spoil."""
    for name in CHECKED + COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "seqroute_ray").symlink_to(ROOT / "seqroute_ray")
    return tmp_path


def spoil(repository: Path, mistake: Mistake) -> list[str]:
    """The problems with the mistake."""
    path, right = repository / mistake.file, mistake.right
    assert right in path.read_text(), f"{right!r} is no longer in {mistake.file}: plant another mistake"
    path.write_text(path.read_text().replace(right, mistake.wrong, 1))
    return [str(problem) for problem in validate(repository)]


def test_this_repository_has_no_problems() -> None:
    assert validate(ROOT) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_named_with_its_place(repository: Path, mistake: str) -> None:
    planted = MISTAKES[mistake]
    place = r"line \d+" if planted.place == "line" else re.escape(planted.place)
    found = spoil(repository, planted)
    named = re.escape(planted.named_in or planted.file)
    assert [line for line in found if re.match(rf"{named}:{place}: ", line) and planted.words in line], found


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("seqroute train --dataset d --out p", None),
        ("seqroute train --dataset d --output p", "--output"),
        ("seqroute trian", "trian"),
        ("python jobs/train.py --dataset d --out p --cql.gamma 3", "gamma must be in [0, 1]"),
        ("ray upp cluster.yaml", "'upp': no command of `ray`"),
        ("ray job submit --working-dir . -- python jobs/tune.py --dataset d", "--tune-sessions"),
        ('ray exec cluster.yaml "cd /app && serve deploi x.yaml"', "'deploi': no command of `serve`"),
    ],
)
def test_commands_are_parsed_by_their_own_parsers(command: str, message: str | None) -> None:
    [words] = simple_commands(command)
    refused = wrong_command(ROOT, words)
    assert refused is None if message is None else message in str(refused)


def test_redirections_and_the_background_are_no_words_of_a_command() -> None:
    line = "NAME=1 seqroute serve --config a.yaml 2> b.log < c > d 2>&1 & curl -s http://x | head -n 1"
    assert simple_commands(line) == [
        ["seqroute", "serve", "--config", "a.yaml"],
        ["curl", "-s", "http://x"],
        ["head", "-n", "1"],
    ]


def test_the_settings_of_production_load_and_let_nobody_in() -> None:
    config = load_config(ROOT / "serve_configs/production_upstreams.yaml")
    assert config.policy.artefact is not None
    assert config.policy.artefact.startswith("s3://")
    assert config.ledger.startswith("redis://")
    assert {key.sha256 for key in config.keys} == {"0" * 64}


def test_a_file_that_is_not_yaml_is_one_line(repository: Path) -> None:
    (repository / "cluster.yaml").write_text("a: [")
    problems = validate(repository)
    assert [(problem.file, problem.path) for problem in problems] == [("cluster.yaml", "-")]
    assert "\n" not in str(problems[0])


def test_the_command_exits_with_1_and_a_line_for_each_problem(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "cluster.yaml").unlink()
    assert main(ValidateConfig(root=repository, run_docker_commands=True)) == 1
    assert capsys.readouterr().out == "cluster.yaml:-: cannot be read (No such file or directory); restore it\n"


def test_docker_commands_run_where_the_stage_copied_its_files(repository: Path) -> None:
    (repository / DOCKERFILE).write_text(
        "FROM python:3.11.14-slim-bookworm AS base\nRUN apt-get update\nCOPY jobs/train.py README.md copied/\n"
        "FROM base AS one\nARG NAME=copied/train.py\n"
        "RUN python -c \"open('${NAME}'); import sys; assert sys.prefix != sys.base_prefix\"\n"
        "RUN python copied/not-there.py && python -c 'never'\n"
    )
    [problem] = run_stages(repository)
    assert problem.path == "line 7"
    assert "python copied/not-there.py: exit code 2 in one" in problem.message
