"""What a check finds, and how it reads the files it checks."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from seqroute_ray.core.errors import ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML has it


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in one place."""

    file: str  # from the repository's root
    path: str  # dotted keys and indices within the file, or `line N`
    message: str  # value, rule, way out

    def __str__(self) -> str:
        return f"{self.file}:{self.path}: {self.message}"


Problems = Iterator[Problem]


class BrokenFileError(ConfigError):
    """A file that no check can look into."""

    def __init__(self, file: str, message: str) -> None:
        self.problem = Problem(file, "-", message)
        super().__init__(str(self.problem))


def read_text(root: Path, file: str) -> str:
    """Raises BrokenFileError."""
    try:
        return (root / file).read_text()
    except OSError as error:
        raise BrokenFileError(file, f"cannot be read ({error.strerror}); restore it") from error


def read_yaml(root: Path, file: str) -> list[dict[str, Any]]:
    """The documents of a file, each a mapping. Raises BrokenFileError."""
    try:
        documents = [document for document in yaml.load_all(read_text(root, file), LOADER) if document is not None]
    except yaml.YAMLError as error:
        raise BrokenFileError(file, f"not YAML: {' '.join(str(error).split())}") from error
    for document in documents:
        if not isinstance(document, dict):
            raise BrokenFileError(file, f"{document!r:.60}: each document must be a mapping of keys to values")
    return documents


def mapping_of(root: Path, file: str) -> dict[str, Any]:
    """The one document of a file. Raises BrokenFileError."""
    documents = read_yaml(root, file)
    if len(documents) != 1:
        raise BrokenFileError(file, f"{len(documents)} documents, must be 1; remove the others")
    return documents[0]


def of_schema(file: str, error: ValidationError, above: str = "") -> Problems:
    """Every broken rule of a pydantic schema."""
    for broken in error.errors():
        where = ".".join([above, *map(str, broken["loc"])] if above else map(str, broken["loc"])) or "-"
        got = "" if broken["type"] == "missing" else f"{broken['input']!r:.60}: "
        wrong = broken["type"] == "extra_forbidden"
        rule = "not a field here; correct its name or remove it" if wrong else broken["msg"]
        yield Problem(file, where, f"{got}{rule}")


def near(name: str, known: Iterable[str]) -> str:
    """The way out of a wrong name: the known ones it resembles, or all."""
    known = list(known)
    return f"did you mean {' or '.join(difflib.get_close_matches(name, known) or sorted(known)[:20])}?"
