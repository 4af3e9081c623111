"""Pages say nothing that is not so: links lead somewhere, commands parse, code compiles, names exist.

Nothing runs here. The blocks of the guide and of README run in test_guide.py and test_readme.py, but for `make`
(a fresh clone's business: `.ci/run`). Commands on other pages are parsed by the parsers that would run them; those of
clouds are looked at by `make validate-deploy`. Python that reads files is compiled, and what it imports looked up.
"""

import ast
import functools
import importlib
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.validate.dockerfile import Dockerfile
from deploy.validate.docs import Docs, check_docs
from deploy.validate.markdown import Block, blocks, prose
from deploy.validate.pins import Pins
from seqroute_ray.cli import COMMANDS

from .pages import ROOT, blocks_of, pages

PAGES = pages()
OF_TODAY = [page for page in PAGES if page != "docs/STATUS.md"]  # which names what is to come
ROOTS = (ROOT, ROOT / "seqroute_ray")  # that names of files in pages begin at
LANGUAGES = {"bash", "json", "log", "python", "text", "yaml"}
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z.-]*[a-z]")
OTHER_PROGRAMS = ("curl ", "docker ", "pip ", "ray ", "redis-cli ", "tensorboard ")  # whose flags may be named
# Their own flags: a field of a config that stands in one of these.
SCRIPTS = ("benchmarks/*.py", "tests/serving/fake_provider.py", "deploy/validate/__main__.py")


def of_language(*languages: str) -> list[tuple[str, Block]]:
    return [(page, block) for page in PAGES for block in blocks_of(page) if block.language in languages]


def place(value: object) -> str:
    return f"line{value.line}" if isinstance(value, Block) else str(value)


@functools.cache
def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    found = dict[str, int]()
    for heading in re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found)


def dead(page: str, target: str) -> bool:
    """Whether a relative link leads nowhere."""
    url = urlsplit(target)
    if url.scheme:
        return url.scheme not in ("http", "https")
    file = (ROOT / page).parent / url.path if url.path else ROOT / page
    return not file.exists() or bool(url.fragment and url.fragment not in anchors(file))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = LINK.findall(CODE.sub("", prose((ROOT / page).read_text())))
    assert [target for target in targets if dead(page, target)] == []


@pytest.mark.parametrize(
    ("target", "is_dead"),
    [
        ("design.md", False),
        ("design.md#the-mdp-coremdppy-defines-it", False),
        ("#keys", False),
        ("https://example.com/x", False),
        ("desing.md", True),
        ("design.md#the-mpd", True),
        ("#kyes", True),
        ("htps://example.com", True),
    ],
)
def test_a_dead_link_is_told_from_a_live_one(target: str, is_dead: bool) -> None:
    assert dead("docs/api.md", target) == is_dead


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language_and_is_closed(page: str) -> None:
    text = (ROOT / page).read_text()
    assert {block.language for block in blocks(text)} <= LANGUAGES
    assert "```" not in prose(text)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "bash" for b in blocks_of(page))])
def test_every_command_in_a_block_could_run(page: str) -> None:
    pins = Pins(ROOT, tuple(Dockerfile(ROOT).stages))
    assert list(map(str, check_docs(ROOT, pins, Docs(ROOT, page)))) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("seqroute trian --dataset d", "trian"),
        ("seqroute train --dataset d --out p --cql.gamma 3", "gamma must be in [0, 1]"),
        ("python jobs/tain.py", "jobs/tain.py: no such file"),
        ("python -m deploy.valdate", "deploy.valdate: no such module"),
        ("make quikstart", "did you mean quickstart"),
        ("seqroute serve --config serve_configs/nowhere.yaml", "serve_configs/nowhere.yaml: no such file"),
        ("sudo reboot", "sudo: no program"),
    ],
)
def test_a_command_that_could_not_run_is_named(tmp_path: Path, command: str, words: str) -> None:
    (tmp_path / "page.md").write_text(f"```bash\n{command}  # as it is\n```\n")
    for name in ("jobs", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    [problem] = check_docs(tmp_path, Pins(ROOT, ()), Docs(tmp_path, "page.md"))
    assert problem.path == "line 2"
    assert words in problem.message


@pytest.mark.parametrize(("page", "block"), of_language("python"), ids=place)
def test_python_compiles_and_what_it_imports_is_there(page: str, block: Block) -> None:
    tree = ast.parse(block.text, filename=page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize(("page", "block"), of_language("yaml", "json"), ids=place)
def test_settings_and_objects_parse(page: str, block: Block) -> None:  # noqa: ARG001 - names the case
    if block.language == "yaml":
        assert yaml.safe_load(block.text) is not None
    else:
        rows = block.text.splitlines() if "\n{" in block.text else [block.text]
        assert [row for row in rows if not isinstance(json.loads(row), dict)] == []


@functools.cache
def flags_of_commands() -> set[str]:
    from docs.reference import commands

    every = [flag for command in commands() for flag in command.flags]
    return {"--help", *(name for flag in every for name in flag.name.split())}


@functools.cache
def groups_of_flags() -> set[str]:
    return {flag.rpartition(".")[0] for flag in flags_of_commands()} - {""}


@functools.cache
def settings_of_scripts() -> set[str]:
    scripts = [path.read_text() for pattern in SCRIPTS for path in ROOT.glob(pattern)]
    return {name.replace("_", "-") for text in scripts for name in re.findall(r"\b([a-z_]+): ", text)}


def is_flag(flag: str) -> bool:
    """One of a command, or all that begin alike; or one of a script, by its last part."""
    group, _, last = flag.rpartition(".")
    of_script = group not in groups_of_flags() and last.removeprefix("--") in settings_of_scripts()
    return flag in flags_of_commands() | groups_of_flags() or of_script


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/cluster.md"])  # it names flags of others
def test_every_flag_in_the_text_is_one(page: str) -> None:
    codes = CODE.findall(prose((ROOT / page).read_text()))
    flags = {flag for code in codes if not code.startswith(OTHER_PROGRAMS) for flag in FLAG.findall(code)}
    assert [flag for flag in sorted(flags) if not is_flag(flag)] == []


@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("--cql.lr", True),
        ("--cql", True),
        ("--no-resume", True),
        ("--own-questions", True),  # of a benchmark
        ("--cql.own-questions", False),
        ("--colour", False),
    ],
)
def test_a_flag_that_is_none_is_told_from_one(flag: str, known: bool) -> None:
    assert is_flag(flag) == known


@pytest.mark.parametrize("page", OF_TODAY)
def test_every_command_in_the_text_is_one(page: str) -> None:
    for code in CODE.findall(prose((ROOT / page).read_text())):
        program, *words = code.removeprefix("PYTHONPATH=. ").split()
        if program == "seqroute" and words and not words[0].startswith("-"):
            assert words[0] in COMMANDS, code
        elif program == "make" and words:
            assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(), code
        elif program == "python" and words and words[0].endswith(".py"):
            assert (ROOT / words[0]).is_file(), code


@pytest.mark.parametrize("page", OF_TODAY)
def test_every_file_of_the_repository_that_is_named_is_there(page: str) -> None:
    named = set(re.findall(r"`([\w-]+/[\w/.-]+\.(?:md|py|yaml|jinja|parquet))`", prose((ROOT / page).read_text())))
    ours = {name for name in named if any((root / name.partition("/")[0]).is_dir() for root in ROOTS)}
    assert {name for name in ours if not any((root / name).exists() for root in ROOTS)} == set()
