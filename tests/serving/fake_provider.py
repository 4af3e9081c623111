"""The provider of chaos tests and overhead benchmarks: answers with the worst case, fails on demand, logs every call.

python -m tests.serving.fake_provider --port 8190 --calls-log calls.jsonl --faults 500:0.02 reset-mid:0.01

Prints `{"base_url": ...}` once it listens. Each answer uses as many prompt tokens as the router's bound allows and
exactly max_tokens. A model name NAME+FAULT always has that fault; else faults are drawn at the rates of --faults.
PUT /faults {"500": 0.5} changes the rates; GET /calls gives {"begun": n, "in_flight": k}: once in_flight is 0, the log
holds one JSON line for every call that ever reached this process.
"""

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tyro
from aiohttp import web

from seqroute_ray.serving.prompt_tokens import estimate, extra_texts, message_text

FAULTS = {
    "429": "refused with Retry-After: 1; not billed",
    "500": "refused; not billed",
    "reset-before": "worked to the end, then the connection is reset before the first byte; billed in full",
    "reset-mid": "the connection is reset after half of the answer",
    "truncated": "a clean end after half of the answer",
    "stall-before": "says nothing until the client hangs up",
    "stall-mid": "says nothing more after half of the answer",
    "bytes": "every byte is sent alone",
    "malformed": "JSON breaks off in the middle of the answer; the rest is sent",
    "no-usage": "no usage is given; billed in full",
    "triple": "bills three times the tokens",
}
WORD = "four"  # text of a token: the bytes that one has in common text
POLL_S = 0.02  # for a client that hangs up
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    """Each field is a flag."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port
    calls_log: Path | None = None  # JSON lines, appended and flushed call by call
    faults: tuple[str, ...] = ()  # NAME:RATE, rates in [0, 1] that sum to at most 1
    seed: int = 0  # of the faults drawn
    delay_s: float = 0.0  # before each answer
    chunk_delay_s: float = 0.0  # before each chunk of a stream
    tokens_per_chunk: int = 8


@dataclass(slots=True, kw_only=True)
class Call:
    """One call, as it stands."""

    attempt_id: str
    model: str
    stream: bool
    fault: str
    prompt_tokens: int
    max_tokens: int
    include_usage: bool
    completion_tokens: int = 0  # generated so far: what is billed
    completed: bool = False  # the whole answer was handed to the network

    @property
    def factor(self) -> int:
        return 3 if self.fault == "triple" else 1

    @property
    def usage(self) -> dict[str, int]:
        """Of the whole answer."""
        prompt_tokens, completion_tokens = self.factor * self.prompt_tokens, self.factor * self.max_tokens
        total_tokens = prompt_tokens + completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": total_tokens,
        }

    def to_json(self) -> dict[str, Any]:
        """The line of the log; tokens are those billed."""
        return {
            "attempt_id": self.attempt_id,
            "model": self.model,
            "stream": self.stream,
            "fault": self.fault,
            "prompt_tokens": self.factor * self.prompt_tokens,
            "completion_tokens": self.factor * self.completion_tokens,
            "completed": self.completed,
        }


@dataclass
class FakeProvider:
    """A handler for aiohttp's low-level server: without routes and middleware, which cost as much as the answer."""

    config: FakeConfig
    log: TextIO | None
    rates: dict[str, float] = field(default_factory=dict)
    num_begun: int = 0
    num_in_flight: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.config.seed)
        self.rates = checked_rates(dict(_named_rate(text) for text in self.config.faults))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/v1/chat/completions":
            return await self._chat(request)
        if request.path == "/calls":
            return web.json_response({"begun": self.num_begun, "in_flight": self.num_in_flight})
        if request.path == "/faults" and request.method == "PUT":
            self.rates = checked_rates(await request.json())
            return web.json_response(self.rates)
        return web.json_response({"error": {"message": f"no {request.path}"}}, status=404)

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            call = self._read(request, json.loads(await request.read()))
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response({"error": {"message": repr(error)}}, status=400)
        self.num_begun += 1
        self.num_in_flight += 1
        try:
            return await self._answer(request, call)
        except ConnectionError:  # the client hung up
            return web.Response()
        finally:
            self.num_in_flight -= 1
            if self.log:
                self.log.write(json.dumps(call.to_json()) + "\n")
                self.log.flush()

    def _read(self, request: web.BaseRequest, body: dict[str, Any]) -> Call:
        name, _, fault = body["model"].partition("+")
        if fault and fault not in FAULTS:
            raise ValueError(f"model {body['model']!r}: a fault is one of {', '.join(FAULTS)}")
        return Call(
            attempt_id=request.headers.get("x-client-request-id", ""),
            model=name,
            stream=bool(body.get("stream")),
            fault=fault or self._draw(),
            prompt_tokens=estimate(extra_texts(body), [message_text(each) for each in body["messages"]]).bound,
            max_tokens=body.get("max_tokens") or body.get("max_completion_tokens") or 16,
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def _draw(self) -> str:
        left = self._rng.random() if self.rates else 1.0
        for fault, rate in self.rates.items():
            left -= rate
            if left < 0:
                return fault
        return ""

    async def _answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        if call.fault in ("429", "500"):
            call.prompt_tokens = 0
            headers = {"retry-after": "1"} if call.fault == "429" else {}
            return web.json_response({"error": {"message": "a fault"}}, status=int(call.fault), headers=headers)
        if call.fault == "stall-before":
            await _hung_up(request)
        if self.config.delay_s:
            await asyncio.sleep(self.config.delay_s)
        if call.fault == "reset-before":
            call.completion_tokens = call.max_tokens
            _reset(request)
        if call.stream:
            return await self._send(request, call, self._chunks(call), "text/event-stream")
        call.completion_tokens = call.max_tokens  # an answer that comes whole was generated before it is sent
        body = _whole(call)
        if call.fault not in ("", "no-usage", "triple"):
            half = len(body) // 2
            pieces = [(body[:half], 0), (body[half:], 0)]
            return await self._send(request, call, pieces, "application/json")
        call.completed = request.transport is not None and not request.transport.is_closing()
        return web.Response(body=body, content_type="application/json")

    async def _send(
        self, request: web.BaseRequest, call: Call, pieces: list[tuple[bytes, int]], content_type: str
    ) -> web.StreamResponse:
        """Send (bytes, tokens in them), with the fault after half of them."""
        response = web.StreamResponse(headers={"content-type": content_type})
        await response.prepare(request)
        for position, (piece, num_tokens) in enumerate(pieces):
            if position == len(pieces) // 2 and await self._break(request, response, call):
                break
            if self.config.chunk_delay_s and call.stream:
                await asyncio.sleep(self.config.chunk_delay_s)
            call.completion_tokens += num_tokens
            await _write(response, piece, call.fault == "bytes")
        else:
            call.completed = True
        await response.write_eof()
        return response

    async def _break(self, request: web.BaseRequest, response: web.StreamResponse, call: Call) -> bool:
        """The fault in the middle; whether the answer ends here. Raises ConnectionError."""
        if call.fault == "malformed":
            await response.write(b'data: {"choices": [\n\n')
        elif call.fault == "stall-mid":
            await _hung_up(request)
        elif call.fault == "reset-mid":
            await asyncio.sleep(POLL_S)  # else the reset overtakes what was sent
            _reset(request)
        return call.fault == "truncated"

    def _chunks(self, call: Call) -> list[tuple[bytes, int]]:
        """A stream's chunks and their tokens."""
        size = self.config.tokens_per_chunk
        full, rest = divmod(call.max_tokens, size)
        chunks = [(_chunk(call.model, WORD * size), size)] * full
        if rest:
            chunks.append((_chunk(call.model, WORD * rest), rest))
        chunks.append((_chunk(call.model, "", "length"), 0))
        if call.include_usage and call.fault != "no-usage":
            usage = {"id": "chatcmpl-fake", "choices": [], "usage": call.usage}
            chunks.append((b"data: " + json.dumps(usage).encode() + b"\n\n", 0))
        return [*chunks, (DONE, 0)]


def _chunk(model: str, text: str, finish_reason: str | None = None) -> bytes:
    reason = f'"{finish_reason}"' if finish_reason else "null"
    return (
        f'data: {{"id":"chatcmpl-fake","object":"chat.completion.chunk","created":1,"model":"{model}","choices":'
        f'[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":{reason}}}]}}\n\n'
    ).encode()


def _whole(call: Call) -> bytes:
    usage = "" if call.fault == "no-usage" else f',"usage":{json.dumps(call.usage)}'
    return (
        f'{{"id":"chatcmpl-fake","object":"chat.completion","created":1,"model":"{call.model}","choices":[{{"index":0,'
        f'"message":{{"role":"assistant","content":"{WORD * call.max_tokens}"}},"finish_reason":"length"}}]{usage}}}'
    ).encode()


async def _write(response: web.StreamResponse, piece: bytes, byte_by_byte: bool) -> None:
    if not byte_by_byte:
        await response.write(piece)
        return
    for position in range(len(piece)):
        await response.write(piece[position : position + 1])
        await asyncio.sleep(0)


def _reset(request: web.BaseRequest) -> None:
    """Break the connection off as a crash does. Raises ConnectionResetError."""
    if request.transport is not None:
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    raise ConnectionResetError


async def _hung_up(request: web.BaseRequest) -> None:
    """Wait for the client to hang up. Raises ConnectionResetError then."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(POLL_S)
    raise ConnectionResetError


def _named_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition(":")
    return name, float(rate)


def checked_rates(rates: dict[str, float]) -> dict[str, float]:
    """Raises ValueError on an unknown fault or rates above 1."""
    unknown = set(rates) - set(FAULTS)
    if unknown or not all(rate >= 0 for rate in rates.values()) or sum(rates.values()) > 1:
        raise ValueError(f"faults must be NAME:RATE of {', '.join(FAULTS)}, at most 1 together; got {rates}")
    return rates


async def serve(config: FakeConfig) -> None:
    """Until the process is ended."""
    log = config.calls_log.open("a") if config.calls_log else None
    provider = FakeProvider(config, log)
    runner = web.ServerRunner(web.Server(provider.handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, config.host, config.port, backlog=1024).start()
    print(json.dumps({"base_url": f"http://{config.host}:{runner.addresses[0][1]}/v1"}), flush=True)
    await asyncio.Event().wait()


@contextmanager
def running_fake_provider(*flags: str) -> Iterator[str]:
    """The provider as a process of its own while the block runs; yields its base_url."""
    command = [sys.executable, "-m", "tests.serving.fake_provider", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["base_url"]
        finally:
            process.terminate()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(tyro.cli(FakeConfig, description=(__doc__ or "").splitlines()[0])))
