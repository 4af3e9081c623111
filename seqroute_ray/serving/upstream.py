"""The client of OpenAI-compatible providers: one aiohttp session for all of them. Logs neither prompts nor keys."""

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import aiohttp

from seqroute_ray.serving.config import UpstreamConfig

CONNECT_TIMEOUT_S = 10.0
MAX_QUOTED_CHARACTERS = 300  # of a provider's own error message


class UpstreamError(Exception):
    """A provider gave no usable answer.

    status: its HTTP status, None when there was none. may_be_billed: the request may have been worked on.
    """

    def __init__(self, message: str, *, status: int | None = None, may_be_billed: bool) -> None:
        super().__init__(message)
        self.status, self.may_be_billed = status, may_be_billed


class UpstreamClient:
    """Chat completions of all upstreams; open it with `async with`."""

    def __init__(self, upstreams: Iterable[UpstreamConfig], timeout_s: float) -> None:
        self._upstreams = {upstream.model: upstream for upstream in upstreams}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s / 2))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "UpstreamClient":
        # The ledger bounds the calls in flight, not the connection pool: waiting in a pool looks like a slow provider.
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def complete(self, model: str, fields: Mapping[str, Any], max_tokens: int) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one chat completion. Raises UpstreamError.

        fields: the request without model and token limit, which are set here.
        """
        upstream = self._upstreams[model]
        body = {**fields, "model": upstream.sent_model, upstream.max_tokens_field: max_tokens}
        if self._session is None:
            raise RuntimeError("UpstreamClient is used outside `async with`")
        try:
            async with self._session.post(
                f"{upstream.base_url}/chat/completions", json=body, headers=_headers(upstream), allow_redirects=False
            ) as response:
                return response.status, await _read(model, response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UpstreamError(
                f"upstream {model!r} cannot be reached ({_name(error)})", may_be_billed=False
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"upstream {model!r} gave no answer ({_name(error)})", may_be_billed=True) from error


def _headers(upstream: UpstreamConfig) -> dict[str, str]:
    if not upstream.api_key_env:
        return {}
    return {"authorization": f"Bearer {os.environ[upstream.api_key_env]}"}


def _name(error: Exception) -> str:
    return type(error).__name__


async def _read(model: str, response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON object of an answer. Raises UpstreamError on a status outside 2xx or another body."""
    try:
        body = await response.json(content_type=None)
    except ValueError:
        body = None
    if not 200 <= response.status < 300:
        message = f"upstream {model!r} answered HTTP {response.status}{_quote(response.status, body)}"
        raise UpstreamError(message, status=response.status, may_be_billed=False)
    if not isinstance(body, dict):
        message = f"upstream {model!r} answered HTTP {response.status} without a JSON object"
        raise UpstreamError(message, status=response.status, may_be_billed=True)
    return body


def _quote(status: int, body: Any) -> str:
    """The provider's own message; not for 401 and 403, where it may quote a part of the key."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if status in (401, 403) or not isinstance(message, str):
        return ""
    return f": {message[:MAX_QUOTED_CHARACTERS]}"
