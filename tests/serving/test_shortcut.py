import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from seqroute_ray.core.errors import LedgerUnavailable
from seqroute_ray.serving.shortcut import Shortcut


def answers_of(method: str, path: str) -> tuple[bool, list[Any]]:
    """Whether FastAPI was asked, and what was sent."""
    app, sent, asked = FastAPI(), list[Any](), False

    @app.post("/turn")
    async def turn(request: Request) -> Response:
        return Response(request.url.path)

    @app.post("/broken")
    async def broken(request: Request) -> Response:
        raise LedgerUnavailable(f"no ledger for {request.url.path}")

    async def fastapi(*_: Any) -> None:
        nonlocal asked
        asked = True

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "server": ("h", 1)}
    asyncio.run(Shortcut(fastapi, routes)(scope, receive, send))
    return asked, sent


def test_a_turn_is_answered_past_fastapi() -> None:
    asked, (start, body) = answers_of("POST", "/turn")
    assert (asked, start["status"], body["body"]) == (False, 200, b"/turn")


def test_an_error_gets_the_same_answer_as_elsewhere() -> None:
    asked, (start, body) = answers_of("POST", "/broken")
    assert (asked, start["status"]) == (False, 503)
    assert b'"code":"ledger_unavailable"' in body["body"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/turn"), ("POST", "/turn/"), ("POST", "/other")])
def test_all_else_is_for_fastapi(method: str, path: str) -> None:
    assert answers_of(method, path) == (True, [])
