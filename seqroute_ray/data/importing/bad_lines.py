"""Rows that were put aside, as the quarantine file tells of them: no text in it."""

import json
from collections.abc import Iterable
from typing import NamedTuple


class BadLine(NamedTuple):
    """A row that cannot be used."""

    at: int  # index of the file
    row: int  # in the file
    file: str
    line: int
    reason: str
    session_id: str | None
    turn: int | None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def quarantine_lines(bad: Iterable[BadLine]) -> bytes:
    """JSON lines without the places to sort by."""
    names = ("file", "line", "reason", "session_id", "turn")
    return "".join(json.dumps({name: getattr(one, name) for name in names}) + "\n" for one in bad).encode()
