"""From exceptions to HTTP answers, in the schema of the API that was called."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from seqroute_ray.core.errors import LedgerError, LedgerUnavailable, SeqRouteError
from seqroute_ray.serving import anthropic_schema, openai_schema
from seqroute_ray.serving.edge import BUG, NOBODY
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.upstream import UpstreamError

HANDLED = (SeqRouteError, UpstreamError)  # every other exception is a bug, and a 500
LEDGER_RETRY_S = 2
MESSAGES_PATH = "/v1/messages"  # the endpoint that speaks Anthropic's schema


def add_error_handlers(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal(request.url.path, as_request_error(error))

    async def answer_bug(request: Request, _: Exception) -> JSONResponse:
        return refusal(request.url.path, BUG)

    async def answer_nobody(*_: object) -> Response:
        return Response(status_code=NOBODY)

    for kind in (*HANDLED, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    app.add_exception_handler(Exception, answer_bug)


def refusal(path: str, error: RequestError) -> JSONResponse:
    """In the schema of the API that the path belongs to."""
    schema = anthropic_schema if path == MESSAGES_PATH else openai_schema
    return JSONResponse(schema.error_body(error), error.status, headers=error.headers)


def as_request_error(error: Exception) -> RequestError:
    """What a client is told."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UpstreamError):
        return _of_upstream(error)
    if isinstance(error, LedgerUnavailable):
        return RequestError(str(error), status=503, code="ledger_unavailable", retry_after_s=LEDGER_RETRY_S)
    if isinstance(error, LedgerError):  # such as a session that was closed while its turn ran
        return RequestError(str(error), status=409, code="ledger_conflict")
    if isinstance(error, HTTPException):
        codes = {404: "not_found", 405: "method_not_allowed"}
        return RequestError(
            str(error.detail), status=error.status_code, code=codes.get(error.status_code, "http_error")
        )
    return RequestError(str(error))


def _of_upstream(error: UpstreamError) -> RequestError:
    """502; clients may try again by themselves only when nothing was charged."""
    details: dict[str, Any] = {"upstream_status": error.status, "charged": error.may_be_billed}
    if error.retryable:
        details["retry_after_s"] = max(1, round(error.retry_after_s or 1))
    return RequestError(str(error), status=502, code=f"upstream_{error.kind}", **details)
