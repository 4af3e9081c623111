"""Server-sent events, as bytes: an incremental parser that accepts any split of the stream, and an encoder.

Source: the WHATWG HTML standard, "Server-sent events". `id` and `retry` are ignored: a paid stream is never resumed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 2**20  # no chunk of text comes near; a provider that sends more would fill our memory
BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


class SseError(Exception):
    """The stream breaks a rule of the parser."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; several `data` lines are joined by line feeds."""

    data: bytes
    name: bytes = b""  # of the `event` field; empty: the default, a message


class SseParser:
    """Bytes in, events out; where the bytes are split makes no difference."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._parts: list[bytes] = []  # of a line that has not ended
        self._num_part_bytes = 0
        self._data: list[bytes] = []  # lines of an event that has not ended
        self._num_data_bytes = 0
        self._name = b""
        self._after_cr = False  # a line feed that comes first belongs to the line before
        self._at_start = True

    def feed(self, received: bytes) -> Iterator[Event]:
        """The events that these bytes complete. Use it up before feeding again. Raises SseError on a long event."""
        if self._after_cr and received:
            received = received.removeprefix(b"\n")
            self._after_cr = False
        lines = received.splitlines()  # of bytes: at CR, LF and CRLF, nothing else
        if received.endswith((b"\n", b"\r")):
            self._after_cr = received.endswith(b"\r")
            unfinished = b""
        else:
            unfinished = lines.pop() if lines else b""
        for line in lines:
            event = self._line(self._whole(line))
            if event is not None:
                yield event
        if unfinished:
            self._keep(unfinished)

    def end(self) -> Iterator[Event]:
        """The event that lacks only its last line ends: some servers close the connection right after it."""
        yield from self.feed(b"\n")
        yield from self.feed(b"\n")

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._num_part_bytes += len(part)
        self._check(self._num_part_bytes)

    def _whole(self, line: bytes) -> bytes:
        if self._parts:
            line = b"".join([*self._parts, line])
            self._parts.clear()
            self._num_part_bytes = 0
        if self._at_start:
            line, self._at_start = line.removeprefix(BOM), False
        return line

    def _line(self, line: bytes) -> Event | None:
        """Take a whole line; the event that it ends."""
        if not line:
            return self._dispatch()
        self._check(len(line))
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._num_data_bytes += len(value) + 1
            self._check(self._num_data_bytes)
        elif field == b"event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._name = b""
        if not data:
            return None
        self._data, self._num_data_bytes = [], 0
        return Event(data[0] if len(data) == 1 else b"\n".join(data), name)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise SseError(f"an event must have at most {self._max_bytes} bytes, got {num_bytes} and it goes on")


def encode(data: bytes, name: bytes = b"") -> bytes:
    """One event as it is sent. CR and CRLF in data arrive as LF."""
    head = b"event: " + name + b"\n" if name else b""
    return head + b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(data)) + b"\n"
