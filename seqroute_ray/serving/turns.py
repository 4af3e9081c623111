"""One turn from request to answer: open, decide, reserve, call, settle. No HTTP."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, TypeVar

from seqroute_ray.core.errors import (
    BudgetExhaustedError,
    ConfigError,
    LedgerError,
    NoModelError,
    SeqRouteError,
    UnknownSessionError,
)
from seqroute_ray.core.ledger import Account, Feedback, StoredAnswer
from seqroute_ray.serving.attempts import Attempts, Started, turn_limit_nusd
from seqroute_ray.serving.config import PolicySettings, ServingConfig
from seqroute_ray.serving.idempotency import Replays
from seqroute_ray.serving.identity import ledger_session_id
from seqroute_ray.serving.keys import Caller
from seqroute_ray.serving.knobs import BUDGET_HEADER
from seqroute_ray.serving.late import LateWrites
from seqroute_ray.serving.ledgers.factory import open_ledger
from seqroute_ray.serving.ledgers.reaper import running_reaper
from seqroute_ray.serving.loading import followed, load_policies
from seqroute_ray.serving.metrics import Metrics
from seqroute_ray.serving.policies import Chosen
from seqroute_ray.serving.purse import Purse, month_of
from seqroute_ray.serving.refusals import no_model
from seqroute_ray.serving.requests import RequestError
from seqroute_ray.serving.router import Decision, Router
from seqroute_ray.serving.settling import Settling
from seqroute_ray.serving.streams import Stream
from seqroute_ray.serving.turn import UNREADABLE, Ask, Embedding, Renderer
from seqroute_ray.serving.upstream import UpstreamClient
from seqroute_ray.serving.upstream_errors import malformed

INLINE_CHARACTERS = 4000  # of a text that is embedded where it stands: a thread costs as much as its tokens

logger = logging.getLogger(__name__)
T = TypeVar("T")


class TurnService:
    """Policies, ledger and providers in one process; open it with `async with`."""

    def __init__(self, config: ServingConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self._asked = config.policy
        self.policies = load_policies(config, config.policy)
        self._lease_s = config.upstream_timeout_s + config.lease_margin_s
        self._upstream = UpstreamClient(config.upstreams, config.upstream_timeouts)
        self._late = LateWrites(metrics, self._lease_s)
        self.attempts = Attempts(config, self._upstream, metrics, self._late)
        self._settling = Settling(metrics, self._late, config.unseen_stream_tokens)
        self._running: set[asyncio.Task[Any]] = set()
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> "TurnService":
        config = self.config
        self.ledger = await open_ledger(config.ledger, config.redis_password_env)
        self._opened.push_async_callback(self.ledger.close)
        self._replays = Replays(self.ledger, config.idempotency_wait_s, self._lease_s, self.metrics)
        await self._opened.enter_async_context(running_reaper(self.ledger, config.reaper, self.metrics))
        await self._opened.enter_async_context(self._upstream)
        following = asyncio.create_task(self._follow())
        self._opened.callback(following.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._late.close()
        await self._opened.aclose()

    async def swap(self, settings: PolicySettings) -> None:
        """Other policies from the next request on; running turns end with theirs. Raises before anything changes."""
        if settings in (self._asked, self.policies.settings) and settings.registry is None:
            return
        policies = await asyncio.to_thread(load_policies, self.config, settings)
        self._asked, self.policies = settings, policies
        logger.info("policy_swapped versions=%s", ",".join(router.version for router in policies.routers))

    async def _follow(self) -> None:
        """For ever: swap when the registry's pointers have moved. What cannot be loaded leaves the old ones at work."""
        while True:
            await asyncio.sleep(self._asked.follow_every_s)
            asked = self._asked
            try:
                if await asyncio.to_thread(followed, asked) != self.policies.settings:
                    await self.swap(asked)
            except (SeqRouteError, OSError) as error:
                logger.error("registry_not_followed error=%s", error)

    def left_alone(self) -> list[str]:
        """Models that are not called for now: their circuits are open."""
        names = self.policies.current.artefact.catalog.names
        return [name for name in names if not self.attempts.breaker.admits(name)]

    async def decide(self, ask: Ask) -> Decision:
        """What `answer` would do now. Nothing is opened, reserved or charged. Raises SeqRouteError."""
        account = await self._peek(ask)
        chosen = self.policies.of(ask.session.session_id)
        purse = self._purse(ask, account)
        limit_nusd = await turn_limit_nusd(ask, purse)
        embedding = await self._embed(chosen, ask.request.text)
        excluded = self.attempts.closed_circuits(chosen)
        try:
            return self.attempts.decide(ask, chosen, embedding, purse, limit_nusd, excluded, explore=False)
        except NoModelError as error:
            raise no_model(error, self.attempts.breaker, chosen.router) from error

    async def answer(self, ask: Ask, renderer: Renderer) -> StoredAnswer | Stream:
        """Answer a turn and charge it; a stream is charged at its end. Raises SeqRouteError, UpstreamError.

        From the reservation on, the turn runs to its end even when the caller is cancelled (a client that hangs up):
        no reservation stays open.
        """
        account = await self._open(ask)
        stored = await self._replays.claim(ask)
        if stored is not None:
            return stored
        work = self._spawn(self._pay(ask, account, renderer))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._abandon)
            raise

    async def _pay(self, ask: Ask, account: Account, renderer: Renderer) -> StoredAnswer | Stream:
        try:
            _check_session(account, ask)  # after the claim: an answer that is kept is given whatever became of it
            started = await self._start(ask, account)
            if ask.request.stream:
                return self._stream(started, renderer)
            return await self._whole(started, renderer)
        except BaseException:
            await self._replays.disclaim(ask)
            raise

    async def _start(self, ask: Ask, account: Account) -> Started:
        begun_s = time.monotonic()
        chosen = self.policies.of(account.session_id)
        embedding = await self._embed(chosen, ask.request.text)
        purse = self._purse(ask, account)
        started = await self.attempts.start(ask, chosen, embedding, purse)
        self.metrics.add("stage_seconds", time.monotonic() - begun_s, stage="first_byte")
        if chosen.shadow is None:
            return started
        return started._replace(shadow=self._shadow(ask, chosen.shadow, embedding, account))

    def _shadow(self, ask: Ask, shadow: Router, embedding: Embedding, account: Account) -> dict[str, str]:
        """What the other policy would have chosen on the account before this turn; its mistakes are its own."""
        try:
            decision = self.attempts.choose(ask, shadow, embedding, account, ask.knobs.max_turn_nusd)
        except (NoModelError, BudgetExhaustedError) as error:
            return {"policy_version": shadow.version, "refused": type(error).__name__}
        return {"policy_version": decision.policy_version, "model": decision.model}

    async def _whole(self, started: Started, renderer: Renderer) -> StoredAnswer:
        tally = started.upstream.tally
        paid = self._settling.paid(started, tally)
        try:
            answer = renderer.whole(started.upstream.body, paid)
        except UNREADABLE as error:
            await self._settling.settle(started, tally, paid)  # the provider worked, whatever it said
            raise malformed(started.decision.model, "an answer without a message", tally) from error
        key = started.ask.idempotency_key
        await self._settling.settle(started, tally, paid, answer=(key, answer) if key else None)
        return answer

    def _stream(self, started: Started, renderer: Renderer) -> Stream:
        return Stream(
            started,
            self._settling,
            renderer,
            self.metrics,
            spawn=self._spawn,
            forget=lambda: self._replays.disclaim(started.ask),
        )

    def _abandon(self, work: "asyncio.Task[StoredAnswer | Stream]") -> None:
        """The client left before the first byte: end the stream that nobody will read."""
        if not work.cancelled() and work.exception() is None:
            result = work.result()
            if isinstance(result, Stream):
                self._spawn(result.abandon())

    def _purse(self, ask: Ask, account: Account) -> Purse:
        return Purse(self.ledger, account, month_of(ask.caller.id, ask.caller.monthly_budget_nusd), self._lease_s)

    async def _embed(self, chosen: Chosen, text: str) -> Embedding:
        if chosen.router.embeds_here and len(text) <= INLINE_CHARACTERS:
            return chosen.router.embed(text)
        return await asyncio.to_thread(chosen.router.embed, text)

    async def account(self, ledger_id: str, public_id: str) -> Account:
        """Raises RequestError (404) on an unknown session."""
        try:
            return await self.ledger.account(ledger_id)
        except UnknownSessionError as error:
            raise _unknown(public_id) from error

    async def put_budget(self, ledger_id: str, public_id: str, budget_nusd: int, caller: Caller) -> Account:
        """Open a session with this budget, or raise it. Raises RequestError (403, 409)."""
        try:
            account = await self.ledger.account(ledger_id)
        except UnknownSessionError:
            if not caller.may_set_budget:
                raise RequestError("this API key may not set budgets", status=403, code="budget_not_allowed") from None
            account = await self.ledger.open(ledger_id, budget_nusd)
        if account.budget_nusd == budget_nusd:
            return account
        if not caller.may_raise_budget:
            raise RequestError("this API key may not raise a session's budget", status=403, code="budget_not_allowed")
        try:
            return await self.ledger.raise_budget(ledger_id, budget_nusd)
        except ConfigError as error:
            raise RequestError(f"session {public_id!r}: {error}", status=409, code="budget_conflict") from error

    async def close_session(self, ledger_id: str, public_id: str) -> Account:
        """Raises RequestError (404) on an unknown session."""
        try:
            return await self.ledger.close_session(ledger_id)
        except UnknownSessionError as error:
            raise _unknown(public_id) from error

    async def decision(self, decision_id: str, owner: str) -> dict[str, Any]:
        """The record of an answered turn of this owner. Raises RequestError (404)."""
        try:
            record = await self.ledger.decision(decision_id)
        except LedgerError as error:
            raise _no_decision(decision_id) from error
        if record.get("owner") != owner:
            raise _no_decision(decision_id)
        return record

    async def add_feedback(self, feedback: Feedback) -> None:
        """Raises RequestError (404) unless this owner has the turn or session."""
        if not feedback.target.startswith(
            ledger_session_id(feedback.owner, "")
        ):  # a turn; the ledger asks for no owner
            await self.decision(feedback.target, feedback.owner)
        try:
            await self.ledger.add_feedback(feedback)
        except LedgerError as error:
            raise RequestError(
                "feedback: this API key has no session of that name", status=404, code="session_not_found"
            ) from error
        self.metrics.add("feedback")

    async def _open(self, ask: Ask) -> Account:
        """The session's account, opened when it is new. Raises RequestError."""
        try:
            return await self.ledger.account(ask.session.session_id)
        except UnknownSessionError:
            return await self.ledger.open(ask.session.session_id, _first_budget_nusd(ask))

    async def _peek(self, ask: Ask) -> Account:
        """The session's account, or what it would be when it is new; opens none."""
        try:
            account = await self.ledger.account(ask.session.session_id)
        except UnknownSessionError:
            return Account(ask.session.session_id, _first_budget_nusd(ask))
        _check_session(account, ask)
        return account

    def _spawn(self, work: Coroutine[Any, Any, T] | Awaitable[T]) -> "asyncio.Task[T]":
        """Run to the end, whatever becomes of the request; the server waits for it when it stops."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _first_budget_nusd(ask: Ask) -> int:
    budget_nusd = ask.knobs.first_budget_nusd
    if budget_nusd is None:
        message = f"a new session needs the header {BUDGET_HEADER}: this server and key have no default budget"
        raise RequestError(message, code="budget_required")
    return budget_nusd


def _check_session(account: Account, ask: Ask) -> None:
    if account.closed:
        raise RequestError(
            f"session {ask.session.client_id!r} is closed; begin a new one", status=409, code="session_closed"
        )
    if ask.knobs.asked_budget_nusd not in (None, account.budget_nusd):
        raise RequestError(
            f"session {ask.session.client_id!r} has a budget of ${account.budget_nusd / 1e9:.9f}; {BUDGET_HEADER} "
            "may only repeat it; to raise it use PUT /v1/sessions/{id}",
            status=409,
            code="budget_conflict",
        )


def _unknown(public_id: str) -> RequestError:
    message = f"session {public_id!r} is unknown; its first chat completion or a PUT opens it"
    return RequestError(message, status=404, code="session_not_found")


def _no_decision(decision_id: str) -> RequestError:
    return RequestError(
        f"decision {decision_id!r} is unknown; ids stand in the header x-seqroute-decision of answered turns",
        status=404,
        code="decision_not_found",
    )
