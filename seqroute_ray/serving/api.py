"""The HTTP endpoints: OpenAI's chat completions and Anthropic's messages under a session budget; decisions, sessions,
feedback, health.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from seqroute_ray.core.ledger import Account
from seqroute_ray.core.money import to_nusd
from seqroute_ray.serving.anthropic_renderer import AnthropicRenderer
from seqroute_ray.serving.anthropic_schema import MessagesRequest, parse_messages
from seqroute_ray.serving.config import ServingConfig
from seqroute_ray.serving.edge import Edge, headers_of, note, read_body
from seqroute_ray.serving.errors import MESSAGES_PATH, add_error_handlers, refusal
from seqroute_ray.serving.feedback import FeedbackRequest, read_feedback
from seqroute_ray.serving.identity import Identity, check_client_id, identify, ledger_session_id
from seqroute_ray.serving.json_body import read_object
from seqroute_ray.serving.keys import Caller, Keyring, Scope
from seqroute_ray.serving.knobs import KnobDefaults, budget_to_nusd, read_knobs
from seqroute_ray.serving.metrics import Metrics, PrometheusBackend
from seqroute_ray.serving.openai_answers import OpenAIRenderer
from seqroute_ray.serving.openai_schema import ChatCompletionRequest, parse_chat
from seqroute_ray.serving.openapi import body_of, responses_of
from seqroute_ray.serving.requests import RequestError, TurnRequest
from seqroute_ray.serving.shortcut import Shortcut
from seqroute_ray.serving.streams import Stream
from seqroute_ray.serving.turn import Ask, Renderer, decided_headers, money
from seqroute_ray.serving.turns import TurnService

CHAT = "/v1/chat/completions"
IDEMPOTENCY_HEADER = "idempotency-key"
MAX_IDEMPOTENCY_CHARACTERS = 255
ROUTED_MODEL = "seqroute"
INLINE_BYTES = 65_536  # of a body that is parsed where it stands: its tokens take milliseconds beyond


class Api:
    """The endpoints over one TurnService."""

    def __init__(self, config: ServingConfig, metrics: Metrics) -> None:
        self.service, self.metrics = TurnService(config, metrics), metrics
        self.config, self._keyring = config, Keyring(config.keys)
        self._defaults = KnobDefaults(
            session_budget_nusd=None if config.default_budget_usd is None else int(to_nusd(config.default_budget_usd)),
            lambda_per_usd=config.default_lambda_per_usd,
        )

    async def chat_completions(self, request: Request) -> Response:
        """Answer one turn as OpenAI would; `seqroute` says why and what it cost."""
        ask = await self._ask(request, parse_chat)
        return await self._answer(request, ask, OpenAIRenderer(ask.request.include_usage))

    async def messages(self, request: Request) -> Response:
        """Answer one turn as Anthropic would."""
        ask = await self._ask(request, parse_messages)
        return await self._answer(request, ask, AnthropicRenderer(ask.request.prompt_tokens))

    async def route(self, request: Request) -> Response:
        """The decision alone, for a chat completions body: nothing is reserved or charged, no session is opened."""
        ask = await self._ask(request, parse_chat)
        return JSONResponse((await self.service.decide(ask)).to_json())

    async def models(self, request: Request) -> Response:
        """`seqroute`, which chooses, and the models that can be pinned."""
        self._caller(request, "route")
        catalog = self.service.policies.current.artefact.catalog
        rows = [(ROUTED_MODEL, "seqroute"), *((model.name, model.family or "upstream") for model in catalog.models)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in rows]
        return JSONResponse({"object": "list", "data": data})

    async def get_session(self, request: Request, session_id: str) -> Response:
        """A session's money and number of turns."""
        ledger_id = self._session_id(self._caller(request, "sessions"), session_id)
        return JSONResponse(_session(session_id, await self.service.account(ledger_id, session_id)))

    async def put_session(self, request: Request, session_id: str) -> Response:
        """Open a session with `budget_usd`, or raise its budget: an exhausted session goes on."""
        caller = self._caller(request, "sessions")
        ledger_id = self._session_id(caller, session_id)
        body = read_object(await read_body(request, self.config.max_body_bytes))
        if set(body) != {"budget_usd"}:
            raise RequestError(f"the body must be {{'budget_usd': number}}, got fields {sorted(body)[:5]}")
        budget_nusd = budget_to_nusd("budget_usd", body["budget_usd"])
        account = await self.service.put_budget(ledger_id, session_id, budget_nusd, caller)
        return JSONResponse(_session(session_id, account))

    async def delete_session(self, request: Request, session_id: str) -> Response:
        """Close a session: no more turns; running ones still end. Its books are kept."""
        ledger_id = self._session_id(self._caller(request, "sessions"), session_id)
        return JSONResponse(_session(session_id, await self.service.close_session(ledger_id, session_id)))

    async def get_decision(self, request: Request, decision_id: str) -> Response:
        """The record of an answered turn: why this model, what it cost, how it was scored."""
        caller = self._caller(request, "sessions")
        return JSONResponse(await self.service.decision(decision_id, caller.id))

    async def feedback(self, request: Request) -> Response:
        """Keep a score in [0, 1] for an answered turn or a session; the last one of a judge counts."""
        caller = self._caller(request, "sessions")
        feedback = read_feedback(await read_body(request, self.config.max_body_bytes), caller.id)
        await self.service.add_feedback(feedback)
        return JSONResponse({"stored": True, "judge": feedback.judge, "score": feedback.score})

    async def healthz(self) -> Response:
        """The process lives."""
        policies = self.service.policies
        return JSONResponse(
            {
                "policy_version": policies.current.version,
                "policies": [router.version for router in policies.routers],
                "models": list(policies.current.artefact.catalog.names),
            }
        )

    async def readyz(self) -> Response:
        """The ledger answers, if only reads: one that is full says so to the next turn. 503 where it does not."""
        await self.service.ledger.ping()
        return JSONResponse({"ready": True, "left_alone": self.service.left_alone()})

    async def metrics_text(self, request: Request) -> Response:
        """Prometheus' text format; on Serve, Ray's own metrics port has them."""
        self._caller(request, "admin")
        text = self.metrics.exposition()
        if text is None:
            raise RequestError(
                "on Ray Serve, metrics are at the metrics port of every node", status=404, code="not_found"
            )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _caller(self, request: Request, scope: Scope, headers: Mapping[str, str] | None = None) -> Caller:
        """Raises RequestError (401, 403, 429)."""
        caller = self._keyring.authenticate(headers or headers_of(request))
        note(request, key=caller.id)
        caller.require(scope)
        return caller

    def _session_id(self, caller: Caller, client_id: str) -> str:
        check_client_id("session id", client_id)
        return ledger_session_id(caller.id, client_id)

    async def _ask(self, request: Request, parse: Any) -> Ask:
        """The checked request. Raises RequestError."""
        begun_s, headers = time.monotonic(), headers_of(request)
        caller = self._caller(request, "route", headers)
        raw = await read_body(request, self.config.max_body_bytes)
        turn: TurnRequest = parse(raw) if len(raw) <= INLINE_BYTES else await asyncio.to_thread(parse, raw)
        session = identify(caller.id, headers, turn.session_hints)
        policy = self.service.policies.of(session.session_id).router.artefact
        if turn.pinned_model is not None and turn.pinned_model not in policy.catalog.names:
            raise RequestError(
                f"model: {turn.pinned_model!r} is unknown; use {ROUTED_MODEL!r}, or one of GET /v1/models",
                status=404,
                code="model_not_found",
            )
        knobs = read_knobs(
            headers,
            caller.defaults.over(self._defaults),
            policy.layout.reference_cost_usd,
            may_set_budget=caller.may_set_budget,
        )
        self.metrics.add("stage_seconds", time.monotonic() - begun_s, stage="parse")
        idempotency_key = _idempotency_key(headers)
        return Ask(
            request=turn,
            session=session,
            knobs=knobs,
            caller=caller,
            decision_id=new_decision_id(),
            started_s=time.monotonic(),
            idempotency_key=idempotency_key,
            body_hash="" if idempotency_key is None else hashlib.sha256(raw).hexdigest(),
        )

    async def _answer(self, request: Request, ask: Ask, renderer: Renderer) -> Response:
        note(request, session=_masked(ask.session), decision=ask.decision_id)
        answer = await self.service.answer(ask, renderer)
        if isinstance(answer, Stream):
            decision = answer.started.decision
            note(request, model=decision.model, stream=True)
            headers = decided_headers(ask.decision_id, decision, ask.session)
            return StreamingResponse(answer.chunks(), media_type="text/event-stream", headers=headers)
        note(request, model=answer.headers.get("x-seqroute-model"), cost_usd=answer.headers.get("x-seqroute-cost-usd"))
        return Response(answer.body, answer.status, headers=answer.headers)


def make_api(config: ServingConfig) -> ASGIApp:
    """The application, with policies and ledger loaded. Raises ConfigError or ArtefactError."""
    return asgi_app(Api(config, Metrics(PrometheusBackend())))


def asgi_app(api: Api) -> ASGIApp:
    """The endpoints at their paths; the service is open while the application lives."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with api.service:
            yield

    app = FastAPI(title="seqroute", lifespan=lifespan, docs_url=None, redoc_url=None)
    turn, read = (
        responses_of(400, 401, 402, 403, 404, 409, 413, 429, 431, 500, 502, 503),
        responses_of(400, 401, 403, 404, 429, 431, 500, 503),
    )
    chat, session = body_of(ChatCompletionRequest), "/v1/sessions/{session_id:path}"
    app.post(CHAT, openapi_extra=chat, responses=turn)(api.chat_completions)
    app.post(MESSAGES_PATH, openapi_extra=body_of(MessagesRequest), responses=turn)(api.messages)
    app.post("/v1/route", openapi_extra=chat, responses=turn)(api.route)
    app.get("/v1/models", responses=read)(api.models)
    app.get(session, responses=read)(api.get_session)
    app.put(session, openapi_extra=body_of({"budget_usd": "number"}), responses=turn)(api.put_session)
    app.delete(session, responses=read)(api.delete_session)
    app.get("/v1/decisions/{decision_id}", responses=read)(api.get_decision)
    app.post("/v1/feedback", openapi_extra=body_of(FeedbackRequest), responses=turn)(api.feedback)
    app.get("/healthz")(api.healthz)
    app.get("/readyz", responses=responses_of(503))(api.readyz)
    app.get("/metrics", responses=read)(api.metrics_text)
    add_error_handlers(app)
    turns = [route for route in app.routes if isinstance(route, APIRoute) and route.path in (CHAT, MESSAGES_PATH)]
    return Edge(Shortcut(app, turns), api.metrics, api.config.max_header_bytes, refusal)


def new_decision_id() -> str:
    """Unguessable, and rising with time: a ledger's newest rows lie side by side, which makes them cheap to write."""
    return f"dec_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Raises RequestError."""
    key = headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_CHARACTERS:
        raise RequestError(
            f"{IDEMPOTENCY_HEADER}: must have 1 to {MAX_IDEMPOTENCY_CHARACTERS} characters, got {len(key)}"
        )
    return key


def _masked(session: Identity) -> str:
    """Tells sessions apart in a log without naming them."""
    return hashlib.sha256(session.session_id.encode()).hexdigest()[:16]


def _session(client_id: str, account: Account) -> dict[str, Any]:
    return {
        "session_id": client_id,
        **money(account),
        "overshoot_usd": account.overshoot_nusd / 1e9,
        "num_turns": account.num_turns,
        "closed": account.closed,
    }
