"""Clients that hang up on a stream before it has begun: nobody will read it, and its attempt ends all the same."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from seqroute_ray.serving.config import load_config

from .fake_provider import running_fake_provider
from .support import QUESTIONS, random_artefact, running_api, settings, trio, write_settings

FIRST_BYTE_S, HUNG_UP_AFTER_S = 0.8, 0.3
PATIENCE_S = 10.0  # far below the lease


async def hang_up(base_url: str, headers: dict[str, str]) -> dict[str, Any]:
    """The session, once nothing is reserved in it; as it is after PATIENCE_S otherwise."""
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 400, "stream": True}
    deadline_s = time.monotonic() + PATIENCE_S
    async with aiohttp.ClientSession(base_url, headers=headers) as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HUNG_UP_AFTER_S):
                await http.post("/v1/chat/completions", json=body)
        while True:
            session: dict[str, Any] = await (await http.get("/v1/sessions/s")).json()
            ended = session["spent_usd"] and not session["reserved_usd"]
            if ended or time.monotonic() > deadline_s:
                return session
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("key", ["", "k"])
def test_a_stream_that_nobody_waits_for_is_ended_and_charged(tmp_path: Path, key: str) -> None:
    log = tmp_path / "calls.jsonl"
    flags = ("--calls-log", str(log), "--delay-s", str(FIRST_BYTE_S), "--chunk-delay-s", "0.01")
    with running_fake_provider(*flags) as provider_url:
        fields = settings(tmp_path, random_artefact(trio()), provider_url) | {"unseen_stream_tokens": 0}
        with running_api(load_config(write_settings(tmp_path, fields))) as base_url:
            headers = {"x-session-id": "s", "x-session-budget-usd": "0.01"}
            headers |= {"idempotency-key": key} if key else {}
            session = asyncio.run(hang_up(base_url, headers))
    assert session["reserved_usd"] == 0
    assert session["num_turns"] == 1
    (call,) = map(json.loads, log.read_text().splitlines())
    assert call["completed"] == bool(key)  # with a key the client comes again for the answer: it is read to its end
