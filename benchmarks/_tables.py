"""Tables that a page of docs/ quotes, and whether it still quotes them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n"


def missing(tables: Mapping[str, str], page: Path) -> list[str]:
    """Names of the tables that do not stand in the page word for word."""
    text = page.read_text()
    return [name for name, table in tables.items() if table not in text]


def show(tables: Mapping[str, str], page: Path | None) -> None:
    """Print them on stderr. Raises SystemExit when the page has others."""
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}", file=sys.stderr)
    if page is not None and (names := missing(tables, page)):
        raise SystemExit(f"{page} has other tables of {', '.join(names)}; paste those above")
