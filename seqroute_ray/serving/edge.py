"""What every HTTP request passes, whatever its route: limits, a request id, one line in the access log. Pure ASGI.

The access log is JSON on the logger `seqroute_ray.access`: never a prompt, an answer, a key or a session's name.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.requests import RequestError

logger, access_logger = logging.getLogger(__name__), logging.getLogger("seqroute_ray.access")
NOBODY = 499  # the status of a request that nobody is left to get an answer to
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
BUG = RequestError(
    "the server failed on this request; its log says why, beside the request's id", status=500, code="internal_error"
)
NOTES = "seqroute.notes"  # in the ASGI scope: what a route adds to the access log


class Edge:
    """The outermost ASGI application."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_header_bytes: int, refuse: Callable[[str, RequestError], ASGIApp]
    ) -> None:
        """refuse: the answer to a request of a path."""
        self._app, self._metrics, self._max_header_bytes, self._refuse = app, metrics, max_header_bytes, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s, status = time.monotonic(), NOBODY  # until an answer begins
        request_id = _request_id(scope)
        notes: dict[str, Any] = {}
        scope[NOTES] = notes

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > self._max_header_bytes:
                await self._refuse_headers(scope, receive, tell)
                return
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            status = NOBODY  # it left before its request was whole
        except Exception as error:  # raised again: a bug, whose trace the server logs
            logger.error("event=bug request_id=%s error=%s", request_id.decode(), type(error).__name__)
            if status == NOBODY:
                await self._refuse(scope["path"], BUG)(scope, receive, tell)
            raise
        finally:
            self._log(scope, status, time.monotonic() - begun_s, request_id, notes)

    async def _refuse_headers(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = RequestError(
            f"the request's headers exceed {self._max_header_bytes} bytes", status=431, code="headers_too_large"
        )
        await self._refuse(scope["path"], error)(scope, receive, send)

    def _log(self, scope: Scope, status: int, seconds: float, request_id: bytes, notes: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        self._metrics.add("answers", route=route, status=str(status))
        if access_logger.isEnabledFor(logging.INFO):
            line = {"request_id": request_id.decode(), "method": scope["method"], "route": route, "status": status}
            access_logger.info("%s", to_json({**line, "seconds": round(seconds, 6), **notes}).decode())


def note(request: Request, **fields: Any) -> None:
    """Add fields to this request's line in the access log."""
    request.scope.get(NOTES, {}).update(fields)


def headers_of(request: Request) -> dict[str, str]:
    """By lower-case name, the first of each: a dictionary, because a turn looks for fifteen of them."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.scope["headers"])}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises RequestError (413) as soon as it is too large."""
    too_large = RequestError(
        f"the request body exceeds {max_bytes} bytes; send less, or raise max_body_bytes",
        status=413,
        code="body_too_large",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    chunks, size, is_whole = [], 0, False
    while not is_whole:  # not request.stream(), which takes twice as long
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise too_large
        is_whole = not message.get("more_body")
    return b"".join(chunks)


def _request_id(scope: Scope) -> bytes:
    """The client's, if it is harmless; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(16).encode()
