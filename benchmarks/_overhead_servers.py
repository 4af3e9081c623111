"""The servers that benchmarks/serve.py compares, each in processes of its own: `python _overhead_servers.py NAME ...`.

provider   answers at once, always the same
bare       FastAPI passes a request through with aiohttp: what any gateway must do
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web
from fastapi import FastAPI, Request, Response

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "The answer is 72. " * 20}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 40, "completion_tokens": 100, "total_tokens": 140},
}


def provider(port: int) -> None:
    raw = json.dumps(ANSWER).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=raw, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


def bare(port: int, upstream: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app.state.http:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body: Any = await request.json()
        async with request.app.state.http.post(f"{upstream}/chat/completions", json=body) as response:
            return Response(json.dumps(await response.json()), response.status, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    if sys.argv[1] == "provider":
        provider(int(sys.argv[2]))
    else:
        bare(int(sys.argv[2]), sys.argv[3])
