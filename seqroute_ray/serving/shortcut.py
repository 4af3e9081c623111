"""The short way to the routes that answer turns: past FastAPI's routing, dependencies and exit stacks, a tenth of a
turn's CPU. FastAPI keeps the routes for all else: other methods, redirects, OpenAPI.
"""

from collections.abc import Iterable

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from seqroute_ray.serving.errors import HANDLED, as_request_error, refusal


class Shortcut:
    """ASGI middleware around FastAPI. Routes have a fixed path, take the request and give the response."""

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute]) -> None:
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # named in the access log
        try:
            response = await route.endpoint(Request(scope, receive))
        except HANDLED as error:
            response = refusal(route.path, as_request_error(error))
        await response(scope, receive, send)
