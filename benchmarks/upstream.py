"""CPU time of the upstream client a whole answer, a stream and a chunk of it; and of the provider it is tested with.

    python benchmarks/upstream.py [--num-calls 2000]

Run on Linux from the repository's root. The provider is a process of its own (tests/serving/fake_provider.py) without
delay; calls go one after another over one kept connection, so the CPU time of this process is the client's alone. Two
lengths of a stream tell the cost of a chunk from that of a call; chunks come together, or `alone`, a millisecond apart.
Ends with one JSON line; figures are medians of rounds.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from _processes import machine

from seqroute_ray.serving.config import UpstreamConfig, UpstreamTimeouts
from seqroute_ray.serving.upstream import UpstreamClient

FIELDS = {"messages": [{"role": "user", "content": "What is 7 times 6? " * 8}]}
MAX_TOKENS, LONG_TOKENS, TOKENS_PER_CHUNK = 80, 880, 8  # 10 and 110 chunks of text
NUM_ROUNDS = 7
TIMEOUTS = UpstreamTimeouts(connect_s=10, first_byte_s=60, silence_s=30, total_s=120)  # the server's defaults


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_calls: int = 2000  # of each kind, all rounds together

    @property
    def calls_a_round(self) -> int:
        return self.num_calls // NUM_ROUNDS


@contextmanager
def provider(chunk_delay_s: float = 0.0) -> Iterator[tuple[str, int]]:
    """base_url and process id."""
    flags = ["--tokens-per-chunk", str(TOKENS_PER_CHUNK), "--chunk-delay-s", str(chunk_delay_s)]
    command = [sys.executable, "-m", "tests.serving.fake_provider", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["base_url"], process.pid
        finally:
            process.terminate()


def cpu_s_of(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def one(client: UpstreamClient, max_tokens: int, stream: bool) -> None:
    answer = await client.start("m", FIELDS, max_tokens, "attempt", stream)
    async for _ in answer:
        pass
    assert answer.tally.finished
    assert answer.tally.usage is not None


async def cpu_us(settings: Settings, pid: int, call: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Median CPU time of a call: of this process, and of the provider."""
    for _ in range(20):
        await call()
    ours, theirs = [], []
    for _ in range(NUM_ROUNDS):
        own_s, their_s = time.process_time(), cpu_s_of(pid)
        for _ in range(settings.calls_a_round):
            await call()
        ours.append((time.process_time() - own_s) / settings.calls_a_round * 1e6)
        theirs.append((cpu_s_of(pid) - their_s) / settings.calls_a_round * 1e6)
    return float(np.median(ours)), float(np.median(theirs))


async def measure(settings: Settings) -> dict[str, float]:
    async with connected() as (client, pid):
        whole = await cpu_us(settings, pid, lambda: one(client, MAX_TOKENS, False))
        short = await cpu_us(settings, pid, lambda: one(client, MAX_TOKENS, True))
        long = await cpu_us(settings, pid, lambda: one(client, LONG_TOKENS, True))
    few = replace(settings, num_calls=settings.num_calls // 10)  # of 10 ms and 110 ms each
    async with connected(chunk_delay_s=0.001) as (client, pid):
        short_alone = await cpu_us(few, pid, lambda: one(client, MAX_TOKENS, True))
        long_alone = await cpu_us(few, pid, lambda: one(client, LONG_TOKENS, True))
    num_chunks = (LONG_TOKENS - MAX_TOKENS) // TOKENS_PER_CHUNK
    return {
        "whole_us": whole[0],
        "stream_10_chunks_us": short[0],
        "stream_chunk_us": (long[0] - short[0]) / num_chunks,
        "stream_chunk_alone_us": (long_alone[0] - short_alone[0]) / num_chunks,
        "provider_whole_us": whole[1],
        "provider_stream_10_chunks_us": short[1],
        "provider_stream_chunk_us": (long[1] - short[1]) / num_chunks,
    }


@asynccontextmanager
async def connected(chunk_delay_s: float = 0.0) -> AsyncIterator[tuple[UpstreamClient, int]]:
    """A client of a new provider, and the provider's process id."""
    with provider(chunk_delay_s) as (base_url, pid):
        upstream = UpstreamConfig(model="m", base_url=base_url, usd_per_m_input=1, usd_per_m_output=1)
        async with UpstreamClient([upstream], TIMEOUTS) as client:
            yield client, pid


if __name__ == "__main__":
    settings = tyro.cli(Settings, description=__doc__)
    figures = {name: round(value, 1) for name, value in asyncio.run(measure(settings)).items()}
    print(json.dumps({**figures, "num_calls": settings.num_calls, "machine": machine()}))
