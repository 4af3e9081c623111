"""Generated requests against all that the OpenAPI page promises: nothing is a 5xx, nothing an unhandled exception."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis

from seqroute_ray.serving.config import load_config

from .service_support import TURN_KEY, keys_for
from .support import random_artefact, running_api, settings, trio, write_settings

OPERATIONS = (
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
)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[dict[str, Any]]:
    """By label, of a running server with one key and a default budget."""
    folder = tmp_path_factory.mktemp("openapi")
    fields = settings(folder, random_artefact(trio()), upstream_url)
    keys = keys_for("team", default_session_budget_usd=100.0)
    with running_api(load_config(write_settings(folder, {**fields, "keys": keys}))) as base_url:
        schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
        found = (result.ok() for result in schema.get_all_operations())
        yield {operation.label: operation for operation in found}


def test_every_route_is_described(operations: dict[str, Any]) -> None:
    assert set(operations) == set(OPERATIONS)


CASES = [(label, "positive") for label in OPERATIONS]
CASES += [(label, "negative") for label in OPERATIONS if label.startswith(("POST", "PUT"))]


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # schemathesis draws at random
@pytest.mark.parametrize(("label", "mode"), CASES)
def test_no_request_breaks_the_server(operations: dict[str, Any], label: str, mode: str) -> None:
    """positive: as the page describes requests; negative: not so."""
    generation, statuses = schemathesis.GenerationMode(mode), set[int]()

    @hypothesis.settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operations[label].as_strategy(generation_mode=generation))
    def check(case: Any) -> None:
        response = case.call(headers={"authorization": f"Bearer {TURN_KEY}"})
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text
        assert response.status_code not in (401, 403, 429)
        assert response.headers["x-request-id"]
        if response.status_code >= 400:
            assert {"message", "code"} <= set(response.json()["error"])

    check()
    if mode == "positive" and label.startswith("POST /v1/") and "feedback" not in label:
        assert 200 in statuses  # else the page describes no request that is answered
