"""docs/guide.md as a newcomer follows it: its commands and nothing else, in a copy of the repository."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.policy import PolicyArtefact

from .pages import GUIDE, ROOT, Followed, blocks_of, copy_repository, follow, json_objects, with_free_ports
from .serving.support import free_port

pytestmark = pytest.mark.ray
INSTALL = "make install\nsource .venv/bin/activate\n"  # this environment is what they make
BLOCKS = blocks_of(GUIDE)
SHELL = [block for block in BLOCKS if block.language == "bash"]
ASK, SESSION = (next(i for i, b in enumerate(SHELL[1:]) if words in b.text) for words in ("completions", "/sessions/"))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """All shell blocks behind the first, which installs."""
    folder = copy_repository(tmp_path_factory.mktemp("guide") / "repository")
    ports = {8000: free_port(), 8199: free_port()}
    settings = folder / "examples/own_logs/serving.yaml"
    settings.write_text(with_free_ports(settings.read_text(), ports))
    return follow([with_free_ports(block.text, ports) for block in SHELL[1:]], folder)


def test_the_guide_begins_with_what_the_makefile_installs() -> None:
    assert SHELL[0].text == INSTALL
    assert "\ninstall: $(VENV)/.installed\n" in (ROOT / "Makefile").read_text()


def test_its_commands_make_a_calibrated_policy_of_the_own_models(followed: Followed) -> None:
    policy = PolicyArtefact.load(followed.folder / "runs/guide/policy")
    assert policy.catalog.names == ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "gpt-4o-2024-08-06")
    assert len(policy.risk.budgets) > 1  # one before it is calibrated
    assert (followed.folder / "runs/guide/report/report.html").exists()


def test_a_request_is_answered_and_paid_from_its_sessions_budget(followed: Followed) -> None:
    (answer,), (session,) = followed.json_of(ASK), followed.json_of(SESSION)
    assert answer["choices"][0]["message"]["content"]
    assert answer["seqroute"]["cost_usd"] > 0
    assert session["spent_usd"] >= answer["seqroute"]["cost_usd"]
    assert session["remaining_usd"] == pytest.approx(session["budget_usd"] - session["spent_usd"])
    assert session["remaining_usd"] < session["budget_usd"]


def test_the_exported_decisions_have_propensities_and_the_feedback(followed: Followed) -> None:
    rows = pq.read_table(followed.folder / "runs/guide/served-log.parquet").to_pylist()
    assert all(0 < row["propensity"] < 1 for row in rows)
    assert rows[-1]["quality"] == 1


@pytest.mark.parametrize("at", [i for i, block in enumerate(BLOCKS) if block.language == "json"])
def test_what_the_guide_shows_is_printed(followed: Followed, at: int) -> None:
    """A json block shows objects that the shell block before it prints last, some fields left out."""
    printed_by = sum(block.language == "bash" for block in BLOCKS[:at]) - 2
    shown = json_objects(BLOCKS[at].text)
    assert shown
    for ours, theirs in zip(shown, followed.json_of(printed_by)[-len(shown) :], strict=True):
        check(ours, theirs)


def check(shown: Any, printed: Any, at: str = "") -> None:
    """Every field that is shown is there; counts are equal, other values are of their run."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            assert name in printed, f"{at}.{name}"
            check(value, printed[name], f"{at}.{name}")
    elif at.rpartition(".")[2].startswith("num_"):
        assert shown == printed, at


def test_every_block_of_the_guide_is_run_or_compared() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "json"}


def test_the_logs_of_the_guide_are_those_that_their_script_makes(tmp_path: Path) -> None:
    from examples.own_logs.make_logs import LogsConfig, main

    main(LogsConfig(out=tmp_path))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "examples/own_logs" / path.name).read_bytes(), path.name
