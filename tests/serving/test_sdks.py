"""The official OpenAI and Anthropic clients, unchanged, against the running API over real HTTP."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from seqroute_ray.serving.config import load_config

from .service_support import TURN_KEY, keys_for
from .support import QUESTIONS, random_artefact, running_api, settings, trio, write_settings

HEADERS = {"x-session-budget-usd": "0.02"}
USER: Any = {"role": "user", "content": QUESTIONS[0]}
OPENAI_TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ANTHROPIC_TOOL: Any = {"name": "look_up", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("sdks")
    fields = {**settings(folder, random_artefact(trio()), upstream_url), "keys": keys_for("team")}
    with running_api(load_config(write_settings(folder, fields))) as base_url:
        yield base_url


@pytest.fixture
def chat(server: str, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    headers = {**HEADERS, "x-session-id": request.node.name}
    with openai.OpenAI(base_url=f"{server}/v1", api_key=TURN_KEY, default_headers=headers) as client:
        yield client


@pytest.fixture
def messages(server: str, request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    headers = {**HEADERS, "x-session-id": request.node.name}
    with anthropic.Anthropic(base_url=server, api_key=TURN_KEY, default_headers=headers) as client:
        yield client


def test_openai_chat(chat: openai.OpenAI) -> None:
    answer: Any = chat.chat.completions.create(model="seqroute", messages=[USER], max_tokens=40, temperature=0)
    assert answer.choices[0].message.content.startswith("Replay of ")
    assert answer.usage.completion_tokens <= 40
    assert answer.seqroute["decision"]["max_tokens"] == 40
    assert answer.model == answer.seqroute["decision"]["model"]


def test_openai_models(chat: openai.OpenAI) -> None:
    assert [model.id for model in chat.models.list()] == ["seqroute", *trio().names]


def test_openai_stream(chat: openai.OpenAI) -> None:
    with chat.chat.completions.create(model="seqroute", messages=[USER], stream=True) as stream:
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.startswith("Replay of ")
    assert text.endswith("no model was called.")
    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openai_stream_with_usage(chat: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with chat.chat.completions.create(model="seqroute", messages=[USER], stream=True, stream_options=options) as stream:
        *_, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    seqroute: Any = (last.model_extra or {})["seqroute"]
    assert seqroute["cost_usd"] > 0


def test_openai_tools(chat: openai.OpenAI) -> None:
    answer = chat.chat.completions.create(
        model="seqroute", messages=[USER], tools=[OPENAI_TOOL], tool_choice="required"
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    call: Any = (message.tool_calls or [])[0]
    assert call.function.name == "look_up"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "42"}
    said: Any = message.model_dump(exclude_none=True)
    after: Any = chat.chat.completions.create(
        model="seqroute", messages=[USER, said, result], tools=[OPENAI_TOOL], max_tokens=20
    )
    assert after.seqroute["decision"]["chosen_by"] == "tool_call"
    assert after.model == answer.model


def test_openai_streamed_tools(chat: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "look_up"}}
    with chat.chat.completions.create(
        model="seqroute", messages=[USER], tools=[OPENAI_TOOL], tool_choice=choice, stream=True
    ) as stream:
        deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert calls[0].function is not None
    assert calls[0].function.name == "look_up"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert "Replay of" in arguments


def test_openai_errors_are_typed(chat: openai.OpenAI, server: str) -> None:
    poor = chat.with_options(default_headers={"x-session-budget-usd": "0.000001", "x-session-id": "openai-poor"})
    with pytest.raises(openai.APIStatusError) as caught:
        poor.chat.completions.create(model="seqroute", messages=[USER])
    body: Any = caught.value.body
    assert (caught.value.status_code, caught.value.code) == (402, "budget_exhausted")
    assert body["remaining_usd"] == 0.000001
    assert "PUT /v1/sessions/{id}" in body["hint"]
    with pytest.raises(openai.BadRequestError, match="n: must be 1"):
        chat.chat.completions.create(model="seqroute", messages=[USER], n=2)
    with pytest.raises(openai.NotFoundError):
        chat.chat.completions.create(model="gpt-9", messages=[USER])
    stranger = openai.OpenAI(base_url=f"{server}/v1", api_key="sk-nobody", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    stranger.close()


def test_anthropic_message(messages: anthropic.Anthropic) -> None:
    user: Any = USER
    answer: Any = messages.messages.create(model="seqroute", max_tokens=1000, messages=[user], system="Be brief.")
    assert answer.content[0].text.startswith("Replay of ")
    assert (answer.stop_reason, answer.role) == ("end_turn", "assistant")
    assert answer.usage.output_tokens > 0
    assert answer.seqroute["cost_usd"] > 0


def test_anthropic_stream(messages: anthropic.Anthropic) -> None:
    with messages.messages.stream(model="seqroute", max_tokens=1000, messages=[USER]) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text.startswith("Replay of ")
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


def test_anthropic_tools(messages: anthropic.Anthropic) -> None:
    forced: Any = {"type": "tool", "name": "look_up"}
    answer = messages.messages.create(
        model="seqroute", max_tokens=1000, messages=[USER], tools=[ANTHROPIC_TOOL], tool_choice=forced
    )
    use: Any = next(block for block in answer.content if block.type == "tool_use")
    assert (answer.stop_reason, use.name) == ("tool_use", "look_up")
    assert "Replay of" in use.input["text"]
    said: Any = {"role": "assistant", "content": [block.model_dump() for block in answer.content]}
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "42"}]}
    after: Any = messages.messages.create(
        model="seqroute", max_tokens=20, messages=[USER, said, result], tools=[ANTHROPIC_TOOL]
    )
    assert after.seqroute["decision"]["chosen_by"] == "tool_call"


def test_anthropic_streamed_tools(messages: anthropic.Anthropic) -> None:
    forced: Any = {"type": "any"}
    with messages.messages.stream(
        model="seqroute", max_tokens=1000, messages=[USER], tools=[ANTHROPIC_TOOL], tool_choice=forced
    ) as stream:
        final = stream.get_final_message()
    use: Any = final.content[0]
    assert (use.type, use.name, final.stop_reason) == ("tool_use", "look_up", "tool_use")
    assert "Replay of" in use.input["text"]


def test_anthropic_errors_are_typed(messages: anthropic.Anthropic) -> None:
    poor = messages.with_options(default_headers={"x-session-budget-usd": "0.000001", "x-session-id": "anthropic-poor"})
    with pytest.raises(anthropic.APIStatusError) as caught:
        poor.messages.create(model="seqroute", max_tokens=10, messages=[USER])
    error: Any = caught.value.body
    assert caught.value.status_code == 402
    assert (error["type"], error["error"]["type"], error["error"]["code"]) == (
        "error",
        "billing_error",
        "budget_exhausted",
    )
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        messages.messages.create(model="seqroute", max_tokens=10, messages=[])
    with pytest.raises(anthropic.NotFoundError):
        messages.messages.create(model="claude-9", max_tokens=10, messages=[USER])
