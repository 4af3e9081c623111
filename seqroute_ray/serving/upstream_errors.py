"""How a provider can fail, what may have been billed then, and whether asking again is safe.

`retryable` is only ever true where nothing can have been billed: the call did not begin, or its status says that the
provider did not work. Everything else is another paid call, which is the caller's decision.
"""

import email.utils
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import aiohttp

from seqroute_ray.serving.usage import Tally, parse_object

MAX_QUOTED_CHARACTERS = 300  # of a provider's own error message
MAX_RETRY_AFTER_S = 60.0  # a provider that asks for more is treated as down: the breaker keeps asking now and then
GATEWAY_TIMEOUT = 504
OURS_TO_MEND = frozenset({401, 402, 403, 404})  # key, credit, access, name of the model: every request fails alike
# A failed handshake or connection: no request was sent.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


class UpstreamFault(StrEnum):
    """What went wrong."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    RATE_LIMIT = "rate_limit"
    SERVER = "server"
    REFUSED = "refused"  # the request itself, with a status 3xx or 4xx
    TRUNCATED = "truncated"
    MALFORMED = "malformed"


class UpstreamError(Exception):
    """A provider gave no usable answer, or none to its end."""

    def __init__(
        self,
        message: str,
        *,
        kind: UpstreamFault,
        may_be_billed: bool,
        status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        tally: Tally | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.may_be_billed, self.retryable = kind, may_be_billed, retryable
        self.status = status  # HTTP status, or the code of an error inside an answer; None when there was none
        self.retry_after_s = retry_after_s  # as the provider asks, in [0, MAX_RETRY_AFTER_S]
        self.tally = tally or Tally()  # what was seen before it failed

    @property
    def is_providers_fault(self) -> bool:
        """Another request would fail too; not so when this one was refused for what it says."""
        return self.kind is not UpstreamFault.REFUSED or self.status in OURS_TO_MEND


def from_status(model: str, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The error of an HTTP status outside 2xx.

    504 alone may be billed: a gateway lost patience with a server that may go on working.
    """
    message = f"upstream {model!r} answered HTTP {status}{_quote(status, parse_object(body))}"
    worked = status == GATEWAY_TIMEOUT
    kind = UpstreamFault.TIMEOUT if worked else _kind(status)
    return UpstreamError(
        message,
        kind=kind,
        status=status,
        may_be_billed=worked,
        retryable=kind in (UpstreamFault.RATE_LIMIT, UpstreamFault.SERVER),
        retry_after_s=read_retry_after_s(headers, datetime.now(UTC)),
    )


def from_answer(model: str, answer: Mapping[str, Any], tally: Tally) -> UpstreamError:
    """The error that stands in an answer of status 200: the provider worked up to it."""
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int and 400 <= code < 600 else None
    message = f"upstream {model!r} answered with an error{_quote(status, answer)}"
    kind = UpstreamFault.SERVER if status is None else _kind(status)
    return UpstreamError(message, kind=kind, status=status, may_be_billed=True, tally=tally)


def from_exception(model: str, error: Exception, tally: Tally, limit: str) -> UpstreamError:
    """The error of a connection that failed. limit: the setting that ran out, where it is a TimeoutError."""
    name = type(error).__name__
    if isinstance(error, _NOT_SENT):
        message = f"upstream {model!r} cannot be reached ({name})"
        return UpstreamError(message, kind=UpstreamFault.CONNECT, may_be_billed=False, retryable=True)
    if isinstance(error, TimeoutError):
        message = f"upstream {model!r} took longer than {limit} allows"
        return UpstreamError(message, kind=UpstreamFault.TIMEOUT, may_be_billed=True, tally=tally)
    return truncated(model, f"the connection failed ({name})", tally)


def not_admitted(model: str) -> UpstreamError:
    """Other calls have opened its circuit meanwhile; this one was not sent."""
    message = f"upstream {model!r} failed repeatedly and is left alone for now"
    return UpstreamError(message, kind=UpstreamFault.CONNECT, may_be_billed=False, retryable=True)


def truncated(model: str, why: str, tally: Tally) -> UpstreamError:
    message = f"upstream {model!r} did not finish its answer: {why}"
    return UpstreamError(message, kind=UpstreamFault.TRUNCATED, may_be_billed=True, tally=tally)


def malformed(model: str, what: str, tally: Tally) -> UpstreamError:
    message = f"upstream {model!r} sent {what}"
    return UpstreamError(message, kind=UpstreamFault.MALFORMED, may_be_billed=True, tally=tally)


def read_retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or a date); None where it says nothing."""
    milliseconds, value = _seconds(headers.get("retry-after-ms")), headers.get("retry-after")
    wait_s = _seconds(value) if milliseconds is None else milliseconds / 1000
    if wait_s is None and value:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        wait_s = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return None if wait_s is None else min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = math.nan if value is None else float(value)
    except ValueError:
        return None
    return None if math.isnan(seconds) else seconds


def _kind(status: int) -> UpstreamFault:
    if status == 429:
        return UpstreamFault.RATE_LIMIT
    # 408: it gave up reading our request; the fault lies between us, not in what the request says.
    return UpstreamFault.SERVER if status >= 500 or status == 408 else UpstreamFault.REFUSED


def _quote(status: int | None, body: Mapping[str, Any] | None) -> str:
    """The provider's own message; not for 401 and 403, where it may quote a part of the key."""
    error = body.get("error") if body else None
    message = error.get("message") if isinstance(error, dict) else error
    if status in (401, 403) or not isinstance(message, str):
        return ""
    return f": {message[:MAX_QUOTED_CHARACTERS]}"
