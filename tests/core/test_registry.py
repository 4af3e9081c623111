"""The registry of policies: versions, pointers, kills between files, two writers at once; on a disk and on S3."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.locks import only_one
from seqroute_ray.core.registry import CARD, POINTERS, Registry, hash_of
from seqroute_ray.core.storage import Folder
from tests.support import make_artefact


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("policies") / str(seed) for seed in range(4)]
    for seed, folder in enumerate(folders):
        make_artefact(seed=seed).save(folder)
    return folders


@pytest.fixture(params=["disk", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}-registry"


def filled(location: str, policies: list[Path]) -> tuple[Registry, list[str]]:
    registry = Registry(location)
    return registry, [registry.add(policy, metrics={}, lineage={}).version for policy in policies]


def test_versions_are_numbered_and_load_as_they_were_added(location: str, policies: list[Path]) -> None:
    registry = Registry(location)
    first = registry.add(policies[0], metrics={"quality": 0.5}, lineage={"data": "x"})
    second = registry.add(policies[1], parent=first.version, metrics={}, lineage={})
    assert [first.version.split("-")[0], second.version.split("-")[0]] == ["0001", "0002"]
    assert registry.cards() == [first, second]
    assert (first.metrics, second.parent) == ({"quality": 0.5}, first.version)
    assert registry.load(second.version).version == hash_of(second.version)
    assert Folder.at(registry.location_of(second.version)).exists("manifest.json")


def test_the_same_policy_again_is_the_version_that_it_was(location: str, policies: list[Path]) -> None:
    registry, (version,) = filled(location, policies[:1])
    assert registry.add(policies[0], metrics={"new": 1}, lineage={}).version == version
    assert len(registry.cards()) == 1


def test_pointers_move_from_current_to_canary_to_current_and_back(location: str, policies: list[Path]) -> None:
    registry, (one, two, _, _) = filled(location, policies)
    assert registry.pointers().current == ""
    registry.promote(one)
    canary = registry.start_canary(two, 0.2, "try it")
    assert (canary.current, canary.canary, canary.canary_share, canary.why) == (one, two, 0.2, "try it")
    assert registry.roll_back().canary == ""
    registry.start_canary(two, 0.2)
    promoted = registry.promote(two)
    assert (promoted.current, promoted.canary, promoted.previous) == (two, "", (one,))
    back = registry.roll_back("worse")
    assert (back.current, back.previous, back.number) == (one, (), promoted.number + 1)
    assert Registry(location).pointers() == back


REFUSED: list[tuple[Callable[[Registry, str, str], object], str]] = [
    (lambda registry, _one, _two: registry.promote("0009-x"), "no version '0009-x'"),
    (lambda registry, one, _two: registry.start_canary(one, 0.1), "is current already"),
    (lambda registry, _one, two: registry.start_canary(two, 1.0), r"share must be in \(0, 1\)"),
    (lambda registry, _one, _two: registry.roll_back(), "no earlier version"),
]


@pytest.mark.parametrize(("move", "message"), REFUSED)
def test_a_move_that_makes_no_sense_is_refused(
    move: Callable[[Registry, str, str], object], message: str, tmp_path: Path, policies: list[Path]
) -> None:
    registry, (one, two) = filled(str(tmp_path), policies[:2])
    before = registry.promote(one)
    with pytest.raises(ConfigError, match=message):
        move(registry, one, two)
    assert registry.pointers() == before


def test_a_canary_needs_a_current_version(tmp_path: Path, policies: list[Path]) -> None:
    registry, (one,) = filled(str(tmp_path), policies[:1])
    with pytest.raises(ConfigError, match="promote one first"):
        registry.start_canary(one, 0.1)


def _add_and_die(location: str, policy: Path, num_files: int) -> None:
    """Killed as the kernel would, when so many files of the version are written."""
    written, write = [0], Folder.write

    def counted(self: Folder, name: str, content: bytes) -> None:
        write(self, name, content)
        written[0] += 1
        if written[0] == num_files:
            os.kill(os.getpid(), signal.SIGKILL)

    type.__setattr__(Folder, "write", counted)
    Registry(location).add(policy, metrics={}, lineage={})


@pytest.mark.parametrize("num_files", [1, 2])
def test_a_kill_between_the_files_of_a_version_leaves_none_and_the_next_add_makes_it(
    num_files: int, tmp_path: Path, policies: list[Path]
) -> None:
    registry, (one,) = filled(str(tmp_path), policies[:1])
    process = multiprocessing.get_context("fork").Process(
        target=_add_and_die, args=(str(tmp_path), policies[1], num_files)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [card.version for card in registry.cards()] == [one]
    with pytest.raises(ConfigError, match="no version"):
        registry.promote(f"0002-{make_artefact(seed=1).version}")
    two = registry.add(policies[1], metrics={}, lineage={}).version  # the dead process' lock is nobody's
    assert registry.load(two).version == hash_of(two)


def test_of_many_moves_at_once_from_one_state_one_wins(
    tmp_path: Path, policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All read the pointers before any writes; without the lock several would pass the look at the number."""
    registry, versions = filled(str(tmp_path), policies)
    registry.promote(versions[0])
    started, read = threading.Barrier(3), Registry.pointers
    first_look = threading.local()

    def pointers(self: Registry) -> object:
        found = read(self)
        if not getattr(first_look, "done", False):
            first_look.done = True
            started.wait(10)
        return found

    monkeypatch.setattr(Registry, "pointers", pointers)

    def promote(version: str) -> str:
        try:
            Registry(str(tmp_path)).promote(version)
        except ConfigError as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(promote, versions[1:]))
    assert sorted(word == "won" for word in said) == [False, False, True]
    assert sum("somebody else has just moved" in word for word in said) == 2
    monkeypatch.undo()
    assert registry.pointers().number == 2


def test_damaged_files_are_named(tmp_path: Path, policies: list[Path]) -> None:
    registry, (one,) = filled(str(tmp_path), policies[:1])
    (tmp_path / POINTERS).write_text("{")
    with pytest.raises(ArtefactError, match=r"pointers\.json is damaged"):
        registry.pointers()
    (tmp_path / "versions" / one / CARD).write_text(json.dumps({"version": one, "surprise": 1}))
    with pytest.raises(ArtefactError, match=r"card\.json is damaged"):
        registry.cards()


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    message = f"held by process {os.getpid()}"
    with only_one(lock, wait=False), pytest.raises(ConfigError, match=message), only_one(lock, wait=False):
        pass
    with only_one(lock, wait=False):
        pass
