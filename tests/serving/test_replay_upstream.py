import json
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.embedding import WordLlamaEmbedder, unit_rows
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.serving.openai_schema import parse_chat
from seqroute_ray.serving.replay_upstream import ReplayConfig, running_replay_upstream
from seqroute_ray.serving.sse import SseParser

from .support import QUESTIONS

MODEL = "gpt-4o-2024-08-06"


def post(base_url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def stream(base_url: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of a stream that ends with [DONE]."""
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps({**body, "stream": True}).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream"
        *payloads, done = [event.data for event in SseParser().feed(response.read())]
    assert done == b"[DONE]"
    return [json.loads(payload) for payload in payloads]


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


def test_it_never_bills_more_than_the_router_reserves(upstream_url: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie groß ist 7 · 6?"}]
    _, answer = post(upstream_url, ask("", messages=messages))
    bound = parse_chat(json.dumps({"messages": messages}).encode()).prompt_tokens_bound
    assert answer["usage"]["prompt_tokens"] <= bound


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("look_up", "add")]


@pytest.mark.parametrize(
    ("choice", "tool"), [("required", "look_up"), ({"type": "function", "function": {"name": "add"}}, "add")]
)
def test_it_calls_the_tool_that_it_has_to(upstream_url: str, choice: Any, tool: str) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice}
    _, answer = post(upstream_url, ask(QUESTIONS[0], **fields))
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == tool
    assert "Replay of" in json.loads(message["tool_calls"][0]["function"]["arguments"])["text"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(upstream_url, ask(QUESTIONS[0], **fields))]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"]["name"] == tool
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_tool_that_it_need_not_call_is_left(upstream_url: str, choice: Any) -> None:
    _, answer = post(upstream_url, ask(QUESTIONS[0], tools=TOOLS, tool_choice=choice))
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_stream_says_the_same_in_several_chunks(upstream_url: str) -> None:
    _, whole = post(upstream_url, ask(QUESTIONS[0]))
    *texts, last = stream(upstream_url, ask(QUESTIONS[0]))
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in texts]
    assert len([piece for piece in pieces if piece]) > 5
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in (*texts, last)] == [None] * len(texts) + ["stop"]
    assert len({chunk["id"] for chunk in texts}) == 1


def test_a_stream_ends_with_its_usage_only_when_asked(upstream_url: str) -> None:
    _, whole = post(upstream_url, ask(QUESTIONS[0]))
    chunks = stream(upstream_url, ask(QUESTIONS[0], stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_the_first_chunk_of_a_slow_stream_comes_before_the_last() -> None:
    with running_replay_upstream(chunk_delay_s=0.02) as base_url:
        request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(ask("hi", stream=True)).encode())
        started_s = time.monotonic()
        with urllib.request.urlopen(request, timeout=30) as response:
            response.readline()
            first_s = time.monotonic() - started_s
            response.read()
        assert time.monotonic() - started_s > first_s + 5 * 0.02


# What a provider takes, however odd
LENIENT: list[dict[str, Any]] = [
    {"messages": []},
    {"max_tokens": "many", "stream_options": 7, "tool_choice": {"function": 1}, "tools": [1]},
    {"tool_choice": "required", "tools": []},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}, "x"]}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
]


@pytest.mark.parametrize("fields", LENIENT)
def test_it_is_as_lenient_as_a_provider(upstream_url: str, fields: dict[str, Any]) -> None:
    assert post(upstream_url, ask("hi", **fields))[0] == 200


@pytest.mark.parametrize("body", [[1], {"model": MODEL}, {"model": MODEL, "messages": "hi"}, {"messages": [1]}])
def test_what_is_no_chat_is_a_400(upstream_url: str, body: Any) -> None:
    status, answer = post(upstream_url, body)
    assert status == 400
    assert "messages" in answer["error"]["message"]


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


@pytest.mark.parametrize("fields", [{"port": -1}, {"port": 65536}, {"delay_s": -1.0}, {"chunk_delay_s": float("nan")}])
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ReplayConfig(**fields)
