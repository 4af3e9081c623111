"""Code blocks of Markdown pages, and the shell lines in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = "```"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    line: int  # of its first line, below the fence
    language: str
    text: str  # ends in a line feed, unless it is empty

    @property
    def num_lines(self) -> int:
        return self.text.count("\n")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = list[Block](), list[str]()
    language: str | None = None  # of the block that is open
    for number, line in enumerate(page.splitlines(), 1):
        if language is None:
            language = line.removeprefix(FENCE).strip() if line.startswith(FENCE) else None
        elif line.strip() == FENCE:
            found.append(Block(number - len(lines), language, "".join(lines)))
            language, lines = None, []
        else:
            lines.append(f"{line}\n")
    return found


def prose(page: str) -> str:
    """The page with empty lines in the place of its blocks."""
    lines = page.splitlines()
    for block in blocks(page):
        fences_and_between = range(block.line - 2, block.line + block.num_lines)
        for at in fences_and_between:
            lines[at] = ""
    return "\n".join(lines) + "\n"


def shell_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines of a shell block with their numbers, joined where one ends in a backslash, without comments."""
    joined, start = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        start = start if joined else number
        joined += re.sub(r"(^|\s)#.*$", "", line).removesuffix("\\")
        if not line.endswith("\\"):
            yield start, joined
            joined = ""
