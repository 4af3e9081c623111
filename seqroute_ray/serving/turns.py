"""One turn from request to answer: open, decide, reserve, call, settle. No HTTP."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.embedding import load_embedder
from seqroute_ray.core.errors import BudgetExhaustedError, LedgerError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.money import to_nusd
from seqroute_ray.serving.config import ServingConfig, load_artefact
from seqroute_ray.serving.protocol import BUDGET_HEADER, SESSION_HEADER, ChatRequest, RequestError, TurnHeaders
from seqroute_ray.serving.router import Decision, Prompt, Router, advance
from seqroute_ray.serving.sqlite_ledger import SqliteLedger
from seqroute_ray.serving.upstream import UpstreamClient, UpstreamError

MAX_PLAUSIBLE_TOKENS = 10**9  # a usage above this is no usage
MAX_RESERVE_TRIES = 5  # a parallel turn may take the money between decision and reservation

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A paid turn."""

    body: dict[str, Any]  # the provider's JSON
    decision: Decision
    cost_nusd: int
    account: Account  # after settling
    turn: int  # position in the session, from 0


class TurnService:
    """Router, ledger and providers in one process; open it with `async with`."""

    def __init__(self, config: ServingConfig) -> None:
        artefact = load_artefact(config)
        self.router = Router(artefact, load_embedder(artefact.embedder), config.default_max_tokens)
        self.ledger = SqliteLedger(config.ledger_path)
        self._config = config
        self._upstream = UpstreamClient(config.upstreams, config.upstream_timeout_s)
        # SQLite blocks, so it has a thread; one thread, so that a job of several calls is not interleaved.
        self._ledger_thread = ThreadPoolExecutor(1, "ledger")
        self._paying: set[asyncio.Task[Answer]] = set()

    async def __aenter__(self) -> "TurnService":
        await self._upstream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._paying, return_exceptions=True)
        await self._upstream.__aexit__(kind, error, trace)
        self._ledger_thread.shutdown()
        self.ledger.close()

    async def decide(self, request: ChatRequest, headers: TurnHeaders) -> Decision:
        """What `answer` would do now. Nothing is opened, reserved or charged. Raises SeqRouteError."""
        account = await self._peek(headers)
        embedding = await asyncio.to_thread(self.router.embed, request.text)
        return self._choose(embedding, request, headers, account)

    async def answer(self, request: ChatRequest, headers: TurnHeaders) -> Answer:
        """Answer a turn and charge it. Raises SeqRouteError, UpstreamError.

        From the reservation on, the turn runs to its end even when the caller is cancelled (a client that hangs up):
        no reservation stays open.
        """
        if headers.session_id is None:
            raise RequestError(f"the header {SESSION_HEADER} is required: it names the session whose budget pays")
        account = await self._open(headers.session_id, headers)
        embedding = await asyncio.to_thread(self.router.embed, request.text)
        paying = asyncio.create_task(self._pay(embedding, request, headers, account))
        self._paying.add(paying)
        paying.add_done_callback(self._paying.discard)
        return await asyncio.shield(paying)

    async def account(self, session_id: str) -> Account:
        """Raises RequestError (404) on an unknown session."""
        try:
            return await self._in_ledger(lambda: self.ledger.account(session_id))
        except LedgerError as error:
            message = f"session {session_id!r} is unknown; its first chat completion opens it"
            raise RequestError(message, status=404, code="session_not_found") from error

    async def raise_budget(self, session_id: str, budget_nusd: int) -> Account:
        """Raises RequestError (404) on an unknown session, ConfigError on a lower budget."""
        await self.account(session_id)
        return await self._in_ledger(lambda: self.ledger.raise_budget(session_id, budget_nusd))

    async def _pay(
        self, embedding: NDArray[np.float32], request: ChatRequest, headers: TurnHeaders, account: Account
    ) -> Answer:
        reservation_id, decision = await self._reserve(embedding, request, headers, account)
        try:
            _, body = await self._upstream.complete(decision.model, request.fields, decision.max_tokens)
        except BaseException as error:  # raised again: whatever went wrong, the reservation ends
            await self._end_failed(error, reservation_id, account.session_id, decision)
            raise
        cost_nusd = self._bill(body, decision)
        settled = await self._settle(reservation_id, account.session_id, decision, cost_nusd)
        turn = settled.context["num_turns"] - 1
        logger.info("turn model=%s turn=%d cost_usd=%.9f", decision.model, turn, cost_nusd / 1e9)
        return Answer(body=body, decision=decision, cost_nusd=cost_nusd, account=settled, turn=turn)

    async def _reserve(
        self, embedding: NDArray[np.float32], request: ChatRequest, headers: TurnHeaders, account: Account
    ) -> tuple[str, Decision]:
        """Decide and reserve; decide again when a parallel turn was faster. Raises RequestError (402)."""
        for _ in range(MAX_RESERVE_TRIES):
            decision = self._choose(embedding, request, headers, account)
            try:
                return await self._in_ledger(
                    lambda: self.ledger.reserve(account.session_id, decision.reserve_nusd)  # noqa: B023 - awaited here
                ), decision
            except BudgetExhaustedError as error:
                lost = error
                account = await self.account(account.session_id)
        raise _budget_exhausted(lost, account)

    def _choose(
        self, embedding: NDArray[np.float32], request: ChatRequest, headers: TurnHeaders, account: Account
    ) -> Decision:
        lam = headers.lambda_per_usd
        lambda_per_usd = self._config.default_lambda_per_usd if lam is None else lam
        prompt = Prompt(
            tokens=request.prompt_tokens, tokens_bound=request.prompt_tokens_bound, task_type=headers.task_type
        )
        try:
            return self.router.choose(embedding, account, prompt, request.max_tokens, lambda_per_usd)
        except BudgetExhaustedError as error:
            raise _budget_exhausted(error, account) from error

    async def _end_failed(self, error: BaseException, reservation_id: str, session_id: str, decision: Decision) -> None:
        """Give the reservation back when the provider surely did not work, else charge it."""
        charged = not isinstance(error, UpstreamError) or error.may_be_billed
        if charged:
            await self._settle(reservation_id, session_id, decision, decision.reserve_nusd)
        else:
            await self._in_ledger(lambda: self.ledger.release(reservation_id))
        logger.warning("upstream_failed model=%s error=%s charged=%s", decision.model, type(error).__name__, charged)

    async def _settle(self, reservation_id: str, session_id: str, decision: Decision, cost_nusd: int) -> Account:
        """Book a cost and this turn's features on the context as it is now, not as it was before the call."""

        def book() -> Account:
            context = self.ledger.account(session_id).context
            return self.ledger.settle(reservation_id, cost_nusd, advance(context, decision))

        return await self._in_ledger(book)

    def _bill(self, body: dict[str, Any], decision: Decision) -> int:
        """Cost of an answer by its usage; the whole reservation when it has none."""
        prompt_tokens, completion_tokens = (_count(body, name) for name in ("prompt_tokens", "completion_tokens"))
        if prompt_tokens is None or completion_tokens is None:
            logger.warning("usage_missing model=%s charged_usd=%.9f", decision.model, decision.reserve_nusd / 1e9)
            return decision.reserve_nusd
        return self.router.cost_nusd(decision.action, prompt_tokens, completion_tokens)

    async def _open(self, session_id: str, headers: TurnHeaders) -> Account:
        """The session's account, opened when it is new. Raises RequestError."""
        budget_nusd = self._first_budget_nusd(headers)
        if budget_nusd is None:
            return await self._known(session_id)
        account = await self._in_ledger(lambda: self.ledger.open(session_id, budget_nusd))
        _check_same_budget(account, headers)
        return account

    async def _peek(self, headers: TurnHeaders) -> Account:
        """The session's account, or what it would be when it is new; opens none."""
        session_id, budget_nusd = headers.session_id, self._first_budget_nusd(headers)
        try:
            if session_id is not None:
                account = await self._in_ledger(lambda: self.ledger.account(session_id))
                _check_same_budget(account, headers)
                return account
        except LedgerError:
            pass  # a new session
        if budget_nusd is None:
            raise _budget_required()
        return Account(session_id or "(none)", budget_nusd, 0, 0, 0, {})

    async def _known(self, session_id: str) -> Account:
        try:
            return await self._in_ledger(lambda: self.ledger.account(session_id))
        except LedgerError as error:
            raise _budget_required() from error

    def _first_budget_nusd(self, headers: TurnHeaders) -> int | None:
        if headers.budget_nusd is not None or self._config.default_budget_usd is None:
            return headers.budget_nusd
        return int(to_nusd(self._config.default_budget_usd))

    async def _in_ledger(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._ledger_thread, work)


def _count(body: dict[str, Any], name: str) -> int | None:
    """A token count of the answer's usage; None when it is missing or nonsense."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= MAX_PLAUSIBLE_TOKENS else None


def _check_same_budget(account: Account, headers: TurnHeaders) -> None:
    if headers.budget_nusd not in (None, account.budget_nusd):
        raise RequestError(
            f"session {account.session_id!r} has a budget of ${account.budget_nusd / 1e9:.9f}; {BUDGET_HEADER} may "
            "only repeat it; to raise it use PATCH /v1/sessions/{id}",
            status=409,
            code="budget_conflict",
        )


def _budget_required() -> RequestError:
    return RequestError(f"a new session needs the header {BUDGET_HEADER}: this server has no default budget")


def _budget_exhausted(error: BudgetExhaustedError, account: Account) -> RequestError:
    return RequestError(
        str(error),
        status=402,
        code="budget_exhausted",
        spent_usd=account.spent_nusd / 1e9,
        reserved_usd=account.reserved_nusd / 1e9,
        remaining_usd=account.remaining_nusd / 1e9,
        hint='raise the budget with PATCH /v1/sessions/{id} and {"budget_usd": ...}, wait for running turns to give '
        "back what they reserved, or send a shorter prompt",
    )
