"""Folders: whole writes, on a local disk and behind a URI."""

import os
import pickle
import shutil
from pathlib import Path
from typing import IO

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.storage import (
    Folder,
    Location,
    files_in,
    local_path,
    move_local,
    open_input,
    remove,
    state_of,
    suffix_of,
)


@pytest.fixture(params=["local", "fsspec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    location = str(tmp_path / "a") if request.param == "local" else f"memory://{tmp_path}/a"
    return Folder.at(location)


def test_what_is_written_is_read_listed_replaced_and_deleted(folder: Folder) -> None:
    assert folder.names() == []
    folder.write("b/x.json", b"1")
    folder.write("c", b"2")
    folder.write("b/x.json", b"3")
    assert folder.names() == ["b/x.json", "c"]
    assert (folder.read("b/x.json"), folder.exists("c"), folder.exists("b"), folder.exists("d")) == (
        b"3",
        True,
        False,
        False,
    )
    folder.delete("c")
    folder.delete("c")
    assert folder.names() == ["b/x.json"]
    with pytest.raises(OSError, match="c"):
        folder.read("c")


def test_a_folder_travels_as_its_location(folder: Folder) -> None:
    folder.write("x", b"1")
    twin = pickle.loads(pickle.dumps(folder))
    assert (twin, twin.read("x")) == (folder, b"1")


def test_a_relative_folder_travels_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(Folder.at("a"))
    monkeypatch.chdir("/")
    pickle.loads(packed).write("x", b"1")
    assert (tmp_path / "a" / "x").read_bytes() == b"1"


def test_a_deleted_folder_is_gone_with_all_in_it(folder: Folder) -> None:
    folder.write("b/x", b"1")
    folder.delete_all()
    folder.delete_all()
    assert folder.names() == []


def test_files_are_told_from_folders_and_their_states_apart(folder: Folder) -> None:
    folder.write("b/x.jsonl", b"1")
    folder.write("y.jsonl", b"12\n3\n")
    assert files_in(f"{folder}/y.jsonl") is None
    assert state_of(folder.location) is None
    state = state_of(f"{folder}/y.jsonl")
    assert state is not None
    assert files_in(folder.location) == [state]
    assert (state.location, state.size) == (f"{folder}/y.jsonl", 5)
    with open_input(state.location) as file:
        assert list(file) == [b"12\n", b"3\n"]
    assert [suffix_of(name) for name in (state.location, Path("a.b/c.parquet"), "s3://a.b/c")] == [
        ".jsonl",
        ".parquet",
        "",
    ]


def test_a_local_file_moves_to_any_place(folder: Folder, tmp_path: Path) -> None:
    folder.write("x", b"old")
    source = tmp_path / "new"
    source.write_bytes(b"new")
    move_local(source, f"{folder}/x")
    assert (folder.read("x"), source.exists()) == (b"new", False)
    remove(f"{folder}/x")
    remove(f"{folder}/x")
    assert folder.names() == []


def test_an_upload_that_fails_leaves_no_half_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.at(f"memory://{tmp_path}/a")
    folder.write("x", b"old")
    source = tmp_path / "new"
    source.write_bytes(b"new")

    def cut(_file: object, stream: IO[bytes], _size: int) -> None:
        stream.write(b"n")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", cut)
    with pytest.raises(KeyboardInterrupt):
        move_local(source, f"{folder}/x")
    assert folder.names() == []
    assert source.read_bytes() == b"new"


def test_odd_names_are_found_behind_a_uri(tmp_path: Path) -> None:
    folder = Folder.at(f"memory://{tmp_path}/a")
    folder.write("a b%é.jsonl", b"1")
    [state] = files_in(folder.location) or []
    assert state_of(state.location) == state


def test_local_paths_have_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spellings: list[Location] = ["x", "./y/../x", tmp_path / "x", f"file://{tmp_path}/x"]
    assert {local_path(spelling) for spelling in spellings} == {(tmp_path / "x").resolve()}
    assert local_path("s3://bucket/x") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.at(tmp_path)
    folder.write("x", b"old")

    def full(_descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("x", b"new")
    assert (folder.names(), folder.read("x")) == (["x"], b"old")


def test_a_scheme_that_nobody_answers_to_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nope://x: no file system .*; give a local path, s3:// or gs://"):
        Folder.at("nope://x")
