from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from seqroute_ray.serving.upstream import UpstreamFault
from seqroute_ray.serving.upstream_errors import MAX_RETRY_AFTER_S, read_retry_after_s
from seqroute_ray.serving.usage import Tally

from .scripted_provider import whole
from .upstream_support import failure_of

# (status, kind, retryable, may be billed)
STATUSES = [
    (301, UpstreamFault.REFUSED, False, False),
    (400, UpstreamFault.REFUSED, False, False),
    (401, UpstreamFault.REFUSED, False, False),
    (408, UpstreamFault.SERVER, True, False),
    (429, UpstreamFault.RATE_LIMIT, True, False),
    (500, UpstreamFault.SERVER, True, False),
    (503, UpstreamFault.SERVER, True, False),
    (504, UpstreamFault.TIMEOUT, False, True),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "kind", "retryable", "may_be_billed"), STATUSES)
def test_a_status_says_what_may_be_tried_and_billed(
    status: int, kind: UpstreamFault, retryable: bool, may_be_billed: bool, streamed: bool
) -> None:
    error = failure_of([whole({"error": {"message": "the reason"}}, status, retry_after="7")], streamed)
    assert (error.status, error.kind, error.retryable, error.may_be_billed) == (status, kind, retryable, may_be_billed)
    assert error.retry_after_s == 7
    assert error.tally == Tally()
    assert (": the reason" in str(error)) == (status != 401)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", {"error": None}, {"error": {"message": 3}}])
def test_an_error_without_a_message_is_still_one(body: Any) -> None:
    assert str(failure_of([whole(body, 500)])) == "upstream 'm' answered HTTP 500"


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_fails_for_every_request_is_the_providers_fault(status: int) -> None:
    assert failure_of([whole({}, status)]).is_providers_fault


def test_a_request_that_is_wrong_is_not_the_providers_fault() -> None:
    assert not failure_of([whole({}, 400)]).is_providers_fault


NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
RETRY_AFTER = [
    ({}, None),
    ({"retry-after": "3"}, 3),
    ({"retry-after": "0.25"}, 0.25),
    ({"retry-after": "-5"}, 0),
    ({"retry-after": "1e9"}, MAX_RETRY_AFTER_S),
    ({"retry-after": "inf"}, MAX_RETRY_AFTER_S),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after-ms": "500", "retry-after": "3"}, 0.5),
    ({"retry-after-ms": "x", "retry-after": "3"}, 3),
    ({"retry-after": format_datetime(NOW + timedelta(seconds=20), usegmt=True)}, 20),
    ({"retry-after": format_datetime(NOW - timedelta(seconds=20), usegmt=True)}, 0),
]


@pytest.mark.parametrize(("headers", "wanted"), RETRY_AFTER)
def test_retry_after_is_seconds_or_a_date_and_bounded(headers: dict[str, str], wanted: float | None) -> None:
    assert read_retry_after_s(headers, NOW) == wanted
