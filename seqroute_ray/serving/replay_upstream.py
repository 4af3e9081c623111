"""A stand-in for the providers, without keys or cost: answers with the recorded tokens of the nearest bundled question.

python -m seqroute_ray.serving.replay_upstream --port 8199
"""

import asyncio
import logging
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from aiohttp import web

from seqroute_ray.core.embedding import WordLlamaEmbedder, unit_rows
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.serving.protocol import ChatRequest, RequestError, error_body, parse_body, parse_chat

SHUTDOWN_TIMEOUT_S = 1.0  # for answers still on their way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Where the stand-in listens. Each field is a flag."""

    host: str = "127.0.0.1"  # loopback: it is for this machine only
    port: int = 8199  # 0: any free port
    delay_s: float = 0.0  # before each answer, as a slow provider

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be in [0, 65535], got {self.port}")
        if not self.delay_s >= 0:
            raise ConfigError(f"delay_s must be >= 0, got {self.delay_s}")


class ReplayProvider:
    """The recorded outcomes as an aiohttp application."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._outcomes = load_outcomes()
        self._questions = unit_rows(self._outcomes.embedding.astype(np.float32))  # [Q, D]
        self._embedder = WordLlamaEmbedder()
        self._delay_s = delay_s

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self.chat_completions)
        app.router.add_get("/v1/models", self.models)
        return app

    async def models(self, _: web.Request) -> web.Response:
        rows = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": model.family or "replay"}
            for model in self._outcomes.catalog.models
        ]
        return web.json_response({"object": "list", "data": rows})

    async def chat_completions(self, request: web.Request) -> web.Response:
        try:
            body = parse_body(await request.read())
            chat = parse_chat(body)
        except RequestError as error:
            return web.json_response(error_body(str(error), "invalid_request_error", error.code), status=error.status)
        model = body.get("model")
        if model not in self._outcomes.catalog.names:
            message = f"The model {model!r} does not exist: this replay knows the models of GET /v1/models"
            return web.json_response(error_body(message, "invalid_request_error", "model_not_found"), status=404)
        await asyncio.sleep(self._delay_s)
        return web.json_response(self.completion(model, chat))

    def completion(self, model: str, chat: ChatRequest) -> dict[str, Any]:
        """The recorded answer of `model` to the question nearest to the last user message, in OpenAI's schema."""
        outcomes = self._outcomes
        action = outcomes.catalog.action(model)
        question = int(np.argmax(self._questions @ self._embedder.embed([chat.text])[0]))
        recorded_tokens = int(outcomes.completion_tokens[question, action])
        completion_tokens = min(recorded_tokens, chat.max_tokens or recorded_tokens)
        # A provider cannot bill more prompt than was sent, however long the recorded question is.
        prompt_tokens = min(int(outcomes.prompt_tokens[question, action]), chat.prompt_tokens_bound)
        text = f"Replay of {model} on recorded question {outcomes.query_id[question]}; no model was called."
        return {
            "id": f"chatcmpl-replay-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "length" if completion_tokens < recorded_tokens else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }


@contextmanager
def running_replay_upstream(port: int = 0, delay_s: float = 0.0) -> Iterator[str]:
    """The stand-in on loopback, in a daemon thread, while the block runs; yields its base_url. Port 0: any free one."""
    config = ReplayConfig(port=port, delay_s=delay_s)
    runner = web.AppRunner(
        ReplayProvider(config.delay_s).application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="replay-upstream", daemon=True)
    thread.start()
    try:
        actual_port = asyncio.run_coroutine_threadsafe(_listen(runner, config), loop).result()
        yield f"http://{config.host}:{actual_port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _listen(runner: web.AppRunner, config: ReplayConfig) -> int:
    """Start listening; the port. Raises ConfigError when it is taken."""
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as error:
        raise ConfigError(
            f"port {config.port} on {config.host} cannot be used ({error.strerror}); name another"
        ) from error
    return int(runner.addresses[0][1])


def main() -> None:
    try:
        config = tyro.cli(ReplayConfig, description="Replays recorded token counts as an OpenAI-compatible endpoint.")
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("replay_upstream base_url=http://%s:%d/v1", config.host, config.port)
    web.run_app(
        ReplayProvider(config.delay_s).application(), host=config.host, port=config.port, access_log=None, print=None
    )


if __name__ == "__main__":
    main()
