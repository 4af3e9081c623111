"""Folders on a local disk or an object store, with writes that happen whole or not at all.

A location is a local path or a URI (`s3://`, `gs://`, any fsspec scheme that is installed). A local file is written
beside its place, flushed to the disk and renamed; an object appears when its upload ends. Neither is seen half.
"""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import quote, unquote
from uuid import uuid4

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from seqroute_ray.core.errors import ConfigError, StoppedError

Location = str | Path  # a local path, or a URI with a scheme
COPY_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Folder:
    """One folder; names of files in it may hold slashes. Cheap to ship to a worker, which connects by itself."""

    location: str

    @classmethod
    def at(cls, location: Location) -> "Folder":
        """Raises ConfigError when no file system answers to the scheme of the location."""
        folder = cls(str(location))
        folder._resolved  # noqa: B018 - a wrong scheme is an error before the work
        return folder

    def __str__(self) -> str:
        return self.location

    def __getstate__(self) -> dict[str, str]:
        """Absolute: a worker stands in another folder than its driver."""
        return {"location": absolute(self.location)}

    @cached_property
    def _resolved(self) -> tuple[FileSystem, str]:
        return resolve(self.location)

    @property
    def is_local(self) -> bool:
        return isinstance(self._resolved[0], LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self._resolved[1].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The whole file. Raises OSError when there is none or it cannot be read."""
        with self._resolved[0].open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Replace or make a file, whole or not at all. Raises OSError when the place cannot be written."""
        if self.is_local:
            _replace(Path(self._path(name)), content)
            return
        with _uploading(self._resolved[0], self._path(name)) as stream:
            stream.write(content)

    def exists(self, name: str) -> bool:
        """Raises DataError when the place cannot be reached."""
        filesystem = self._resolved[0]
        with reaching(self.location):
            return bool(filesystem.get_file_info(self._path(name)).type == FileType.File)

    def names(self) -> list[str]:
        """The files in it, at any depth, sorted; none when there is no such folder."""
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, at any depth. Raises DataError when the place cannot be reached."""
        filesystem, root = self._resolved
        with reaching(self.location):
            found = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return {info.path[len(root.rstrip("/")) + 1 :]: info.size for info in found if info.type == FileType.File}

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if self.exists(name):
            self._resolved[0].delete_file(self._path(name))

    def delete_all(self) -> None:
        """Delete the folder and all in it, if it is there. Raises StoppedError when the place cannot be reached."""
        filesystem, path = self._resolved
        with reaching(self.location):
            if not self.is_local:  # a deleted folder of objects would leave its parent behind, as an empty object
                for name in self.names():
                    filesystem.delete_file(self._path(name))
            elif os.path.isdir(path):
                shutil.rmtree(path)


class FileState(NamedTuple):
    """What tells one state of a file from another without reading it."""

    location: str
    size: int  # bytes
    changed_ns: int | None  # since 1970; None where the place does not know


def state_of(location: Location) -> FileState | None:
    """None when there is no such file."""
    filesystem, path = resolve(location)
    with reaching(location):
        info = filesystem.get_file_info(path)
    return _state(str(location), info) if info.type == FileType.File else None


def _state(location: str, info: FileInfo) -> FileState:
    return FileState(location, info.size, info.mtime_ns or None)


def files_in(location: Location) -> list[FileState] | None:
    """The files of a folder, unsorted; None when it is no folder."""
    filesystem, path = resolve(location)
    with reaching(location):
        if filesystem.get_file_info(path).type != FileType.Directory:
            return None
        found = filesystem.get_file_info(FileSelector(path))
    root = str(location).rstrip("/")
    quoted = quote if "://" in root else str
    return [_state(f"{root}/{quoted(info.base_name)}", info) for info in found if info.type == FileType.File]


def suffix_of(location: Location) -> str:
    """The ending of a file's name, with its dot."""
    return PurePosixPath(str(location)).suffix


def open_input(location: Location) -> IO[bytes]:
    """A file to read, at any place in it. Raises OSError."""
    filesystem, path = resolve(location)
    if isinstance(filesystem, LocalFileSystem):
        return open(path, "rb")
    return io.BufferedReader(filesystem.open_input_file(path), COPY_BLOCK_BYTES)  # Arrow's files know no lines


def local_path(location: Location) -> Path | None:
    """Absolute; None for a location that is not on a local disk."""
    text = str(location)
    is_remote = "://" in text and not text.startswith("file://")
    return None if is_remote else Path(resolve(location)[1]).resolve()


def remove(location: Location) -> None:
    """Delete a file if it is there."""
    if state_of(location) is not None:
        filesystem, path = resolve(location)
        filesystem.delete_file(path)


def move_local(source: Path, location: Location) -> None:
    """A local file to a location: renamed where both are on one disk, else copied. Raises OSError."""
    filesystem, path = resolve(location)
    if isinstance(filesystem, LocalFileSystem):
        source.replace(path)
        return
    with source.open("rb") as file, _uploading(filesystem, path) as stream:
        shutil.copyfileobj(file, stream, COPY_BLOCK_BYTES)
    source.unlink()


@contextmanager
def _uploading(filesystem: FileSystem, path: str) -> Iterator[IO[bytes]]:
    """A stream to an object. Arrow cannot give an upload up: after an error it ends it, and the object is deleted."""
    try:
        with filesystem.open_output_stream(path) as stream:
            yield stream
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(path)
        raise


def absolute(location: Location) -> str:
    """The same place for a process in another working directory."""
    text = str(location)
    return text if "://" in text else os.path.abspath(text)


def resolve(location: Location) -> tuple[FileSystem, str]:
    """The file system of a location and the path in it. Raises ConfigError or DataError naming the location."""
    text = str(location)
    if "://" not in text:
        return LocalFileSystem(), os.path.abspath(text)
    try:
        with reaching(text):  # a bucket's region is asked for at once
            filesystem, path = FileSystem.from_uri(text)
        return filesystem, str(path)
    except ValueError as error:
        if "Unrecognized filesystem type" not in str(error):
            raise ConfigError(f"{text}: not a location ({one_line(error)}); write s3://BUCKET/FOLDER") from error
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(unquote(text))
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{text}: no file system for this location ({one_line(error)}); give a local path, s3:// or gs://"
        ) from error
    return PyFileSystem(FSSpecHandler(filesystem)), str(path)


@contextmanager
def reaching(location: Location) -> Iterator[None]:
    """Turns what a place that does not answer, or refuses, raises into a StoppedError that names it."""
    try:
        yield
    except OSError as error:
        raise StoppedError(
            f"{location}: cannot be reached ({one_line(error)}); check the name, the credentials and the network"
        ) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _replace(path: Path, content: bytes) -> None:
    """The bytes are on the disk before the name is: even a crash of the machine leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # containers that share a disk may share a pid
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
