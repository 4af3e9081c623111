"""Generated requests against all that the OpenAPI page promises: nothing is a 5xx, nothing an unhandled exception."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis

from seqroute_ray.serving.config import load_config

from .service_support import TURN_KEY, keys_for
from .support import random_artefact, running_api, settings, trio, write_settings


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("openapi")
    fields = settings(folder, random_artefact(trio()), upstream_url)
    keys = keys_for("team", default_session_budget_usd=100.0)
    with running_api(load_config(write_settings(folder, {**fields, "keys": keys}))) as base_url:
        yield schemathesis.openapi.from_url(f"{base_url}/openapi.json")


schema: Any = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@hypothesis.settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_request_breaks_the_server(case: Any) -> None:
    response = case.call(headers={"authorization": f"Bearer {TURN_KEY}"})
    case.validate_response(response)
    assert response.status_code < 500, response.text
    assert response.status_code not in (401, 403, 429)


def test_every_route_is_described(api_schema: Any) -> None:
    paths = {result.ok().label for result in api_schema.get_all_operations()}
    assert paths == {
        "POST /v1/chat/completions",
        "POST /v1/messages",
        "POST /v1/route",
        "GET /v1/models",
        "GET /v1/sessions/{session_id}",
        "PUT /v1/sessions/{session_id}",
        "DELETE /v1/sessions/{session_id}",
        "GET /v1/decisions/{decision_id}",
        "POST /v1/feedback",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }
