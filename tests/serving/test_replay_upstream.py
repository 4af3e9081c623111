import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.embedding import WordLlamaEmbedder, unit_rows
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.serving.replay_upstream import ReplayConfig, running_replay_upstream

from .support import QUESTIONS

MODEL = "gpt-4o-2024-08-06"


def post(base_url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def test_it_answers_with_the_recorded_tokens_of_the_nearest_question(upstream_url: str) -> None:
    outcomes = load_outcomes()
    text = QUESTIONS[0] * 30  # long enough that the recorded prompt is the shorter one
    nearest = int(np.argmax(unit_rows(outcomes.embedding.astype(np.float32)) @ WordLlamaEmbedder().embed([text])[0]))
    action = outcomes.catalog.action(MODEL)
    status, answer = post(upstream_url, ask(text))
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == outcomes.prompt_tokens[nearest, action]
    assert answer["usage"]["completion_tokens"] == outcomes.completion_tokens[nearest, action]
    assert str(outcomes.query_id[nearest]) in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_it_stops_at_max_tokens(upstream_url: str, field: str) -> None:
    _, answer = post(upstream_url, ask(QUESTIONS[0], **{field: 3}))
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_it_never_bills_more_prompt_than_was_sent(upstream_url: str) -> None:
    _, answer = post(upstream_url, ask("hi"))
    assert answer["usage"]["prompt_tokens"] <= 1 + 8


def test_an_unknown_model_is_a_404_in_openais_style(upstream_url: str) -> None:
    status, answer = post(upstream_url, ask("hi", model="gpt-9"))
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"


def test_it_lists_its_models(upstream_url: str) -> None:
    with urllib.request.urlopen(f"{upstream_url}/models", timeout=30) as response:
        names = [row["id"] for row in json.load(response)["data"]]
    assert names == list(load_outcomes().catalog.names)


def test_a_taken_port_is_refused(upstream_url: str) -> None:
    port = int(upstream_url.split(":")[2].removesuffix("/v1"))
    with pytest.raises(ConfigError, match="cannot be used"), running_replay_upstream(port):
        pass


@pytest.mark.parametrize("fields", [{"port": -1}, {"port": 65536}, {"delay_s": -1.0}, {"delay_s": float("nan")}])
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ReplayConfig(**fields)
