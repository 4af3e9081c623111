"""A stand-in for the providers, without keys or cost: answers with the recorded tokens of the nearest bundled question.

python -m seqroute_ray.serving.replay_upstream --port 8199
"""

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import tyro
from aiohttp import web

from seqroute_ray.core.embedding import WordLlamaEmbedder, unit_rows
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.serving.replay_chat import ReplayAnswer, ReplayRequest, chunks, completion, read_request
from seqroute_ray.serving.sse import encode

SHUTDOWN_TIMEOUT_S = 1.0  # for answers still on their way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Where the stand-in listens. Each field is a flag."""

    host: str = "127.0.0.1"  # loopback: it is for this machine only
    port: int = 8199  # 0: any free port
    delay_s: float = 0.0  # before each answer, as a slow provider
    chunk_delay_s: float = 0.0  # before each chunk of a stream, as a model that speaks

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be in [0, 65535], got {self.port}")
        for field in ("delay_s", "chunk_delay_s"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"{field} must be >= 0, got {getattr(self, field)}")


class ReplayProvider:
    """The recorded outcomes as an aiohttp application."""

    def __init__(self, config: ReplayConfig) -> None:
        self._outcomes = load_outcomes()
        self._questions = unit_rows(self._outcomes.embedding.astype(np.float32))  # [Q, D]
        self._embedder = WordLlamaEmbedder()
        self._config = config

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

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        try:
            chat = read_request(await request.read())
        except ValueError as error:
            return _refusal(400, str(error), "invalid_request")
        if chat.model not in self._outcomes.catalog.names:
            message = f"The model {chat.model!r} does not exist: this replay knows the models of GET /v1/models"
            return _refusal(404, message, "model_not_found")
        await asyncio.sleep(self._config.delay_s)
        answer = self.answer(chat)
        if chat.stream:
            return await self._stream(request, answer, chat.include_usage)
        return web.json_response(completion(answer))

    def answer(self, chat: ReplayRequest) -> ReplayAnswer:
        """The recorded tokens of the question nearest to the last user message."""
        outcomes = self._outcomes
        action = outcomes.catalog.action(chat.model)
        question = int(np.argmax(self._questions @ self._embedder.embed([chat.text])[0]))
        recorded_tokens = int(outcomes.completion_tokens[question, action])
        completion_tokens = min(recorded_tokens, chat.max_tokens or recorded_tokens)
        return ReplayAnswer(
            model=chat.model,
            text=f"Replay of {chat.model} on recorded question {outcomes.query_id[question]}; no model was called.",
            tool=chat.tool,
            prompt_tokens=min(int(outcomes.prompt_tokens[question, action]), chat.most_prompt_tokens),
            completion_tokens=completion_tokens,
            is_cut=completion_tokens < recorded_tokens,
        )

    async def _stream(self, request: web.Request, answer: ReplayAnswer, include_usage: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        with suppress(ConnectionError):  # the client hung up
            for chunk in chunks(answer, include_usage):
                if self._config.chunk_delay_s:
                    await asyncio.sleep(self._config.chunk_delay_s)
                await response.write(encode(json.dumps(chunk).encode()))
            await response.write(encode(b"[DONE]"))
            await response.write_eof()
        return response


def _refusal(status: int, message: str, code: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


@contextmanager
def running_replay_upstream(port: int = 0, delay_s: float = 0.0, chunk_delay_s: float = 0.0) -> Iterator[str]:
    """The stand-in on loopback, in a daemon thread, while the block runs; yields its base_url. Port 0: any free one."""
    config = ReplayConfig(port=port, delay_s=delay_s, chunk_delay_s=chunk_delay_s)
    runner = web.AppRunner(ReplayProvider(config).application(), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
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
    web.run_app(ReplayProvider(config).application(), host=config.host, port=config.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
