"""A provider that answers with exactly the bytes a test names: a raw TCP server on loopback."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

RESET = "reset"  # break the connection off, as a crashed server does
STALL = "stall"  # say nothing more until the client hangs up
Script = Sequence[bytes | str]
Step = bytes | str | asyncio.Event  # an event is waited for
Steps = Sequence[Step]


@dataclass
class Scripted:
    """What the server was asked, and where it is."""

    base_url: str = ""
    heads: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)  # a client closed while the script stalled

    async def asked(self) -> None:
        """Return once a first request is here. Raises TimeoutError after 10 s."""
        async with asyncio.timeout(10):
            while not self.bodies:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scripted(*scripts: Steps) -> AsyncIterator[Scripted]:
    """Plays one script a request; the last one again and again."""
    seen = Scripted()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.num_connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                seen.heads.append(head.lower())
                length = int(seen.heads[-1].split("content-length: ")[1].split("\r\n")[0])
                seen.bodies.append(json.loads(await reader.readexactly(length)))
                script = scripts[min(len(seen.bodies), len(scripts)) - 1]
                await _play(script, reader, writer, seen)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield seen
    finally:
        server.close()


async def _play(script: Steps, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Scripted) -> None:
    for step in script:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
            await asyncio.sleep(0)  # lets the client read what is there so far
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif step == RESET:
            await asyncio.sleep(0.02)  # else the reset overtakes what was written
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        else:
            assert step == STALL
            await reader.read()
            seen.hung_up.set()


def whole(body: Any, status: int = 200, **headers: str) -> bytes:
    """A complete response."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n{named}\r\n"
    return head.encode() + raw


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def part(raw: bytes) -> bytes:
    """Some bytes of a streamed body."""
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def stream(raw: bytes, sizes: Sequence[int] = ()) -> list[bytes]:
    """The steps of a whole streamed response, cut after each of the sizes."""
    steps, position = [STREAM_HEAD], 0
    for size in sizes:
        steps.append(part(raw[position : position + size]))
        position += size
    return [*steps, *([part(raw[position:])] if position < len(raw) else []), STREAM_END]
