"""One turn on its way: what was asked, who pays, and what was decided so far. Data only."""

import string
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.ledger import Account, StoredAnswer
from seqroute_ray.serving.identity import Identity
from seqroute_ray.serving.keys import Caller
from seqroute_ray.serving.knobs import Knobs
from seqroute_ray.serving.requests import TurnRequest
from seqroute_ray.serving.router import Decision

PRINTABLE = string.punctuation + " "  # of ASCII; a header takes nothing else, so other names are percent-encoded
UNREADABLE = (LookupError, TypeError, AttributeError, ValueError)  # a renderer's, of JSON that is no chat completion


class Ask(NamedTuple):
    """A request, checked."""

    request: TurnRequest
    session: Identity
    knobs: Knobs
    caller: Caller
    decision_id: str
    started_s: float  # time.monotonic
    idempotency_key: str | None = None
    body_hash: str = ""  # of a request with an idempotency key


class Paid(NamedTuple):
    """An answered turn: what the answer says about itself."""

    decision_id: str
    decision: Decision
    session: Identity
    cost_nusd: int
    account: Account  # after the turn
    policy: str  # current or canary

    @property
    def turn(self) -> int:
        """Position in the session, from 0."""
        return self.account.num_turns - 1

    def headers(self) -> dict[str, str]:
        return {
            **decided_headers(self.decision_id, self.decision, self.session),
            "x-seqroute-cost-usd": f"{self.cost_nusd / 1e9:.9f}",
            "x-seqroute-remaining-usd": f"{self.account.remaining_nusd / 1e9:.9f}",
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "decision_id": self.decision_id,
            "session_id": self.session.client_id,
            "session_from": self.session.source,
            "turn": self.turn,
            "decision": self.decision.to_json(),
            "cost_usd": self.cost_nusd / 1e9,
            **money(self.account),
        }


class Renderer(Protocol):
    """How an answer looks in a client's protocol: OpenAI's, Anthropic's. `whole` and `chunk` may raise UNREADABLE."""

    def whole(self, body: Mapping[str, Any], paid: Paid) -> StoredAnswer: ...

    def begin(self) -> bytes:
        """What a stream begins with."""
        ...

    def chunk(self, payload: bytes) -> bytes:
        """One chunk of the provider's stream."""
        ...

    def end(self, paid: Paid) -> bytes:
        """What a stream ends with."""
        ...

    def failure(self, message: str, code: str) -> bytes:
        """What a stream ends with that broke off."""
        ...


def decided_headers(decision_id: str, decision: Decision, session: Identity) -> dict[str, str]:
    """What is known before the first byte of an answer."""
    return {
        "x-seqroute-decision": decision_id,
        "x-seqroute-model": decision.model,
        "x-seqroute-session": quote(session.client_id, safe=PRINTABLE),
    }


def money(account: Account) -> dict[str, float]:
    return {
        "budget_usd": account.budget_nusd / 1e9,
        "spent_usd": account.spent_nusd / 1e9,
        "reserved_usd": account.reserved_nusd / 1e9,
        "remaining_usd": account.remaining_nusd / 1e9,
    }


Embedding = NDArray[np.float32]  # [1, D]
