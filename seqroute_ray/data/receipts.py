"""Receipts: a task writes one after its files, with their checksums; a run that was killed finds by it what is done."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from seqroute_ray.core.dataset import sha256
from seqroute_ray.core.errors import StoppedError
from seqroute_ray.core.storage import Folder, one_line
from seqroute_ray.data.runners import Row


def finished(
    folder: Folder, receipt: str, terms: Mapping[str, Any], sums: Callable[[Row], Mapping[str, str]]
) -> Row | None:
    """A receipt, if it is of the same terms and the files are what it says.

    terms: what the task was asked, as fields of the receipt. sums: SHA-256 by file of a receipt.
    """
    try:
        row: Row = json.loads(folder.read(receipt))
        if any(row[term] != value for term, value in terms.items()):
            return None
        good = all(sha256(folder.read(name)) == digest for name, digest in sums(row).items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if good else None


def write_or_refuse(folder: Folder, name: str, content: bytes) -> None:
    """Write a file. Raises StoppedError when the place does not take it: no other try would help."""
    try:
        folder.write(name, content)
    except OSError as error:
        raise StoppedError(
            f"{folder}: cannot be written ({one_line(error)}); make room and run again, what is finished is kept; or "
            "choose another folder"
        ) from error
