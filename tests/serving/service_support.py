"""The API over real HTTP, and its providers as scripts: what tests of turns, streams and failures start from."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from seqroute_ray.core.ledger import Account
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.identity import identify
from seqroute_ray.serving.keys import Caller
from seqroute_ray.serving.knobs import Knobs
from seqroute_ray.serving.metrics import Metrics, PrometheusBackend
from seqroute_ray.serving.openai_answers import OpenAIRenderer
from seqroute_ray.serving.openai_schema import parse_chat
from seqroute_ray.serving.sse import encode
from seqroute_ray.serving.turn import Ask
from seqroute_ray.serving.turns import TurnService

from .scripted_provider import STALL, STREAM_END, STREAM_HEAD, Scripted, Steps, part, scripted, whole
from .support import QUESTIONS, Reply, random_artefact, running_api, settings, trio, write_settings

TURN_KEY = "sk-seqroute-not-a-real-key-of-anybody"
DONE = encode(b"[DONE]")


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


def answered(text: str = "yes", prompt_tokens: int = 5, completion_tokens: int = 7, **message: Any) -> list[bytes]:
    """The script of a whole answer."""
    said = {"role": "assistant", "content": text, **message}
    choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
    body = {"id": "chatcmpl-1", "model": "theirs", "choices": choices}
    return [whole({**body, "usage": usage_of(prompt_tokens, completion_tokens)})]


def refused(status: int, message: str = "no", **headers: str) -> list[bytes]:
    """The script of an error."""
    return [whole({"error": {"message": message}}, status, **headers)]


def words(*texts: str) -> list[bytes]:
    """Chunks of a stream, one a text."""
    return [_chunk({"delta": {"content": text}, "finish_reason": None}) for text in texts]


def ending(prompt_tokens: int = 5, completion_tokens: int = 7) -> list[bytes]:
    """The last chunks of a whole stream."""
    usage = {"id": "c", "choices": [], "usage": usage_of(prompt_tokens, completion_tokens)}
    return [_chunk({"delta": {}, "finish_reason": "stop"}), part(encode(json.dumps(usage).encode())), part(DONE)]


def streamed(*texts: str) -> list[bytes]:
    """The script of a whole stream."""
    return [STREAM_HEAD, *words(*texts), *ending(), STREAM_END]


def stalled(*texts: str) -> list[bytes | str]:
    """The script of a stream that says so much and then nothing more."""
    return [STREAM_HEAD, *words(*texts), STALL]


def _chunk(choice: dict[str, Any]) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
    return part(encode(json.dumps(chunk).encode()))


def keys_for(name: str, key: str = TURN_KEY, **fields: Any) -> list[dict[str, Any]]:
    """The setting `keys` with one key that may do all."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return [{"id": name, "sha256": digest, "scopes": ["route", "sessions", "admin"], **fields}]


@dataclass
class Api:
    """A running API, its provider, and a client of it."""

    base_url: str
    provider: Scripted
    http: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.base_url + path
        async with self.http.request(method, url, json=body, headers={**self.headers, **named}) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            return Reply(response.status, json.loads(raw) if is_json else raw.decode(), response.headers)

    async def chat(self, text: str = QUESTIONS[0], headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return await self.call("POST", "/v1/chat/completions", body, **(headers or {}))

    async def session(self, name: str = "s") -> Any:
        return (await self.call("GET", f"/v1/sessions/{name}")).body

    async def settled(self, name: str = "s") -> Any:
        """The session once nothing of it is reserved. Fails after 10 s."""
        async with asyncio.timeout(10):
            while (session := await self.session(name))["reserved_usd"]:
                await asyncio.sleep(0.01)
        return session

    async def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as they stand in the exposition."""
        text = (await self.call("GET", "/metrics")).body
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}


@asynccontextmanager
async def api_over(folder: Path, *scripts: Steps, **changes: Any) -> AsyncIterator[Api]:
    """The API in a thread of its own over one scripted provider of all models.

    changes: settings; ours are `artefact`, `upstream` (fields of every upstream), `upstream_of` (of one, by model).
    Requests are of session s, with 0.01 USD.
    """
    async with scripted(*scripts) as provider, aiohttp.ClientSession() as http:
        config = load_config(settings_for(folder, provider.base_url, changes))
        stack = ExitStack()
        base_url = await asyncio.to_thread(stack.enter_context, running_api(config))
        headers = {"x-session-id": "s", "x-session-budget-usd": "0.01"}
        try:
            yield Api(base_url, provider, http, headers)
        finally:
            await asyncio.to_thread(stack.close)


@asynccontextmanager
async def service_over(folder: Path, *scripts: Steps, **changes: Any) -> AsyncIterator[tuple[TurnService, Scripted]]:
    """A TurnService in this event loop; as api_over."""
    async with scripted(*scripts) as provider:
        config = load_config(settings_for(folder, provider.base_url, changes))
        async with TurnService(config, Metrics(PrometheusBackend())) as service:
            yield service, provider


def settings_for(folder: Path, base_url: str, changes: dict[str, Any]) -> Path:
    fields = dict(changes)
    artefact: PolicyArtefact = fields.pop("artefact", None) or random_artefact(trio())
    upstream, upstream_of = fields.pop("upstream", {}), fields.pop("upstream_of", {})
    fields = {**settings(folder, artefact, base_url), "unseen_stream_tokens": 0, **fields}
    fields["upstreams"] = [{**each, **upstream, **upstream_of.get(each["model"], {})} for each in fields["upstreams"]]
    return write_settings(folder, fields)


def ask_for(
    text: str = QUESTIONS[0],
    *,
    session: str = "s",
    budget_nusd: int = 10**7,
    caller: Caller | None = None,
    decision_id: str = "dec_1",
    knobs: dict[str, Any] | None = None,
    key: str | None = None,
    **fields: Any,
) -> Ask:
    """A checked request of a session."""
    raw = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    request, caller = parse_chat(raw), caller or Caller(id="local")
    asked: dict[str, Any] = {
        "asked_budget_nusd": budget_nusd,
        "default_budget_nusd": None,
        "lambda_per_usd": 0.0,
        "max_turn_nusd": None,
        "task_type": "",
    }
    return Ask(
        request=request,
        session=identify(caller.id, {"x-session-id": session}, request.session_hints),
        knobs=Knobs(**{**asked, **(knobs or {})}),
        caller=caller,
        decision_id=decision_id,
        started_s=time.monotonic(),
        idempotency_key=key,
        body_hash=hashlib.sha256(raw).hexdigest(),
    )


async def answer(service: TurnService, ask: Ask) -> Any:
    """The JSON of a whole answer."""
    result = await service.answer(ask, OpenAIRenderer(ask.request.include_usage))
    return json.loads(result.body)  # type: ignore[union-attr]  # a stream has none


async def account_of(service: TurnService, session: str = "s", owner: str = "local") -> Account:
    return await service.ledger.account(f"{owner}:{session}")
