"""API keys: who calls, what they may do, and how often.

A key is 256 random bits, so its plain SHA-256 is the right thing to store: slow, salted hashes protect secrets that
can be guessed, and here there is nothing to guess from. The settings hold hashes only. What is looked up is the hash of
what was sent, whose bits no caller can steer towards a stored one; the comparison takes constant time all the same.
Rates are counted in each replica's memory: with N replicas a key may do up to N times its requests a minute.
"""

import hashlib
import hmac
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from seqroute_ray.core.ledger import MAX_BUDGET_NUSD
from seqroute_ray.core.money import NUSD_PER_USD, to_nusd
from seqroute_ray.serving.knobs import KnobDefaults
from seqroute_ray.serving.requests import RequestError

Scope = Literal["route", "sessions", "admin"]
SCOPES: tuple[Scope, ...] = ("route", "sessions", "admin")
LOCAL = "local"  # the caller when no keys are configured

Amount = Annotated[float, Field(ge=1 / NUSD_PER_USD, le=MAX_BUDGET_NUSD / NUSD_PER_USD)]  # USD


class KeyConfig(BaseModel):
    """One API key, as it stands in the settings under `keys`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # owner of sessions; appears in records, the key never does
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the key; `seqroute new-key` prints it
    scopes: tuple[Scope, ...] = ("route", "sessions")  # ask the router; read own sessions, send scores; operate it
    requests_per_minute: int | None = Field(default=None, ge=1)  # per replica; null: no limit
    monthly_budget_usd: Amount | None = None  # of all its sessions; null: no limit
    default_session_budget_usd: Amount | None = None  # of a new session; null: the server's default
    default_lambda_per_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # null: the server's
    max_turn_usd: Amount | None = None  # of one turn, unless its request says; null: the server's
    may_set_budget: bool = True  # by the header x-session-budget-usd
    may_raise_budget: bool = True  # by PUT /v1/sessions/{id}


def _each_once(keys: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
    for name in ("id", "sha256"):
        twice = [value for value, count in Counter(getattr(key, name) for key in keys).items() if count > 1]
        if twice:
            raise ValueError(f"each {name} may stand once, {twice[0]} stands more often")
    return keys


Keys = Annotated[tuple[KeyConfig, ...], AfterValidator(_each_once)]  # the type of the setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request, and what holds for them."""

    id: str  # owner of the sessions
    scopes: tuple[Scope, ...] = SCOPES
    defaults: KnobDefaults = field(default_factory=KnobDefaults)
    monthly_budget_nusd: int | None = None
    may_set_budget: bool = True
    may_raise_budget: bool = True

    def require(self, scope: Scope) -> None:
        """Raises RequestError (403)."""
        if scope not in self.scopes:
            has = ", ".join(self.scopes) or "none"
            message = f"API key {self.id!r} needs the scope {scope!r} for this, it has {has}"
            raise RequestError(message, status=403, code="scope_missing")


class Keyring:
    """All keys of a server, and how many requests each may still send now."""

    def __init__(self, keys: Sequence[KeyConfig], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._by_hash = {key.sha256: (key, _caller(key)) for key in keys}
        self._buckets = {key.id: _Bucket(key.requests_per_minute) for key in keys if key.requests_per_minute}
        self._clock_s = clock_s

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller, by `authorization: Bearer KEY` or `x-api-key`; headers by lower-case name.

        Without keys in the settings everybody is "local" and may do all: the server listens on loopback alone then.
        Raises RequestError (401, 429); `Caller.require` raises 403.
        """
        if not self._by_hash:
            return Caller(id=LOCAL)
        sent = list(_sent_keys(headers))
        for key in sent:
            digest = hashlib.sha256(key.encode()).hexdigest()
            known, caller = self._by_hash.get(digest, (None, None))
            if known and caller and hmac.compare_digest(known.sha256, digest):
                self._count(caller)
                return caller
        message = "the API key is unknown" if sent else "an API key is needed"
        raise RequestError(
            f"{message}: send it as `authorization: Bearer KEY` or `x-api-key: KEY`",
            status=401,
            code="invalid_api_key" if sent else "missing_api_key",
        )

    def _count(self, caller: Caller) -> None:
        bucket = self._buckets.get(caller.id)
        wait_s = bucket.take(self._clock_s()) if bucket else 0.0
        if bucket and wait_s > 0:
            raise RequestError(
                f"API key {caller.id!r} may send {bucket.per_minute} requests a minute; wait {math.ceil(wait_s)} s",
                status=429,
                code="rate_limit_exceeded",
                retry_after_s=math.ceil(wait_s),
            )


class _Bucket:
    """A token bucket: holds one minute's requests, fills evenly."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left, self._at_s = float(per_minute), -math.inf

    def take(self, now_s: float) -> float:
        """0 when a request may pass; else after how many seconds one may."""
        per_s = self.per_minute / 60
        self._left = min(self.per_minute, self._left + (now_s - self._at_s) * per_s)
        self._at_s = now_s
        if self._left < 1:
            return (1 - self._left) / per_s
        self._left -= 1
        return 0.0


def _sent_keys(headers: Mapping[str, str]) -> Iterable[str]:
    """Clients of Anthropic's API may send both headers, with different keys."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        yield token.strip()
    if key := headers.get("x-api-key", "").strip():
        yield key


def _caller(key: KeyConfig) -> Caller:
    return Caller(
        id=key.id,
        scopes=key.scopes,
        defaults=KnobDefaults(
            session_budget_nusd=_nusd(key.default_session_budget_usd),
            lambda_per_usd=key.default_lambda_per_usd,
            max_turn_nusd=_nusd(key.max_turn_usd),
        ),
        monthly_budget_nusd=_nusd(key.monthly_budget_usd),
        may_set_budget=key.may_set_budget,
        may_raise_budget=key.may_raise_budget,
    )


def _nusd(amount_usd: float | None) -> int | None:
    return None if amount_usd is None else int(to_nusd(amount_usd))
