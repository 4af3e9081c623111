"""The HTTP endpoints: OpenAI-compatible chat completions under a session budget, decisions, sessions, health."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from seqroute_ray.core.errors import SeqRouteError
from seqroute_ray.core.ledger import Account
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.protocol import (
    RequestError,
    budget_to_nusd,
    error_body,
    parse_body,
    parse_chat,
    parse_headers,
)
from seqroute_ray.serving.turns import TurnService
from seqroute_ray.serving.upstream import UpstreamError


def make_api(config: ServingConfig) -> FastAPI:
    """The application, with policy and ledger loaded. Raises ConfigError or ArtefactError."""
    service = TurnService(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    api = FastAPI(title="seqroute", lifespan=lifespan, docs_url=None, redoc_url=None)
    api.state.service = service
    api.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"])
    api.add_api_route("/v1/route", route, methods=["POST"])
    api.add_api_route("/v1/sessions/{session_id:path}", get_session, methods=["GET"])
    api.add_api_route("/v1/sessions/{session_id:path}", raise_budget, methods=["PATCH"])
    api.add_api_route("/healthz", healthz, methods=["GET"])
    api.add_exception_handler(SeqRouteError, refuse)
    api.add_exception_handler(UpstreamError, report_upstream)
    api.add_exception_handler(HTTPException, report_http)
    return api


async def chat_completions(request: Request) -> JSONResponse:
    """Answer one turn; the provider's JSON plus `seqroute`, which says why and what it cost."""
    chat = parse_chat(parse_body(await request.body()))
    answer = await _service(request).answer(chat, parse_headers(request.headers))
    account = answer.account
    seqroute = {
        "decision": answer.decision.to_json(),
        "cost_usd": answer.cost_nusd / 1e9,
        **_money(account),
        "turn": answer.turn,
    }
    headers = {
        "x-seqroute-model": answer.decision.model,
        "x-seqroute-cost-usd": f"{answer.cost_nusd / 1e9:.9f}",
        "x-seqroute-remaining-usd": f"{account.remaining_nusd / 1e9:.9f}",
    }
    return JSONResponse({**answer.body, "seqroute": seqroute}, headers=headers)


async def route(request: Request) -> JSONResponse:
    """The decision alone: nothing is reserved or charged, no session is opened."""
    chat = parse_chat(parse_body(await request.body()))
    decision = await _service(request).decide(chat, parse_headers(request.headers))
    return JSONResponse(decision.to_json())


async def get_session(request: Request, session_id: str) -> JSONResponse:
    """A session's money and number of turns."""
    return JSONResponse(_session(await _service(request).account(session_id)))


async def raise_budget(request: Request, session_id: str) -> JSONResponse:
    """Raise a session's budget to `budget_usd`; an exhausted session goes on."""
    body = parse_body(await request.body())
    if set(body) != {"budget_usd"}:
        raise RequestError(f"the body must be {{'budget_usd': number}}, got fields {sorted(body)}")
    budget_nusd = budget_to_nusd("budget_usd", body["budget_usd"])
    return JSONResponse(_session(await _service(request).raise_budget(session_id, budget_nusd)))


async def healthz(request: Request) -> JSONResponse:
    """Policy version and models: the server is ready."""
    router = _service(request).router
    return JSONResponse({"policy_version": router.version, "models": list(router.artefact.catalog.names)})


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """A caller's mistake: 400, or the status that the error names."""
    if isinstance(error, RequestError):
        kind = "budget_error" if error.status == 402 else "invalid_request_error"
        return _error(error.status, error_body(str(error), kind, error.code, **error.details))
    return _error(400, error_body(str(error), "invalid_request_error", "invalid_request"))


async def report_upstream(_: Request, error: Exception) -> JSONResponse:
    """A provider's failure: 502; clients may try again by themselves only when nothing was charged."""
    if not isinstance(error, UpstreamError):
        raise error
    details = {"upstream_status": error.status, "charged": error.may_be_billed}
    body = error_body(str(error), "upstream_error", "upstream_error", **details)
    return _error(502, body, retry=not error.may_be_billed)


async def report_http(_: Request, error: Exception) -> JSONResponse:
    """An unknown path or method."""
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, error_body(str(error.detail), "invalid_request_error", "invalid_request"))


def _error(status: int, body: dict[str, Any], *, retry: bool = False) -> JSONResponse:
    # OpenAI's clients repeat 409 and 5xx on their own unless this header says no.
    return JSONResponse(body, status, headers={"x-should-retry": str(retry).lower()})


def _service(request: Request) -> TurnService:
    service: TurnService = request.app.state.service
    return service


def _money(account: Account) -> dict[str, float]:
    return {
        "spent_usd": account.spent_nusd / 1e9,
        "reserved_usd": account.reserved_nusd / 1e9,
        "remaining_usd": account.remaining_nusd / 1e9,
    }


def _session(account: Account) -> dict[str, Any]:
    return {
        "session_id": account.session_id,
        "budget_usd": account.budget_nusd / 1e9,
        **_money(account),
        "overshoot_usd": account.overshoot_nusd / 1e9,
        "num_turns": account.context.get("num_turns", 0),
    }
