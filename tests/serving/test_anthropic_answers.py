"""What we render is read by Anthropic's own client, over HTTP."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.serving.anthropic_answers import PING, AnthropicStream, message_of
from seqroute_ray.serving.anthropic_schema import error_body, parse_messages
from seqroute_ray.serving.requests import RequestError

Object = dict[str, Any]
USAGE = {"prompt_tokens": 50, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 20}}


def call(index: int, **fields: Any) -> Object:
    function = {name: fields[name] for name in ("name", "arguments") if name in fields}
    return {"index": index, "function": function, **({"id": fields["id"]} if "id" in fields else {})}


def answer(finish_reason: str | None = "stop", **message: Any) -> Object:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return {"id": "c1", "model": "m", "choices": [choice], "usage": USAGE, "seqroute": {"cost_usd": 0.25}}


def chunk(finish_reason: str | None = None, **delta: Any) -> Object:
    return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


LAST = {"id": "c1", "model": "m", "choices": [], "usage": USAGE, "seqroute": {"cost_usd": 0.25}}
FULL_CALLS = [
    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}},
    {"id": "t2", "type": "function", "function": {"name": "g", "arguments": ""}},
]
ANSWERS = {
    "text": answer(content="Hello", refusal=None),
    "tools": answer("tool_calls", content="go", tool_calls=FULL_CALLS),
    "cut": answer("length", content="Hel"),
    "refused": answer("content_filter", content=None, refusal="no"),
}
STREAMS = {
    "text": [chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), chunk("stop"), LAST],
    "tools": [
        chunk(content="go"),
        chunk(tool_calls=[call(0, id="t1", name="f", arguments="")]),
        chunk(tool_calls=[call(0, arguments='{"a": ')]),
        chunk(tool_calls=[call(1, id="t2", name="g"), call(0, arguments="[1]}")]),
        chunk("tool_calls"),
        LAST,
    ],
    "cut": [chunk(content="Hel"), chunk("length"), LAST],
    "refused": [chunk(refusal="no"), chunk("content_filter"), LAST],
}


class Provider:
    """Parses what the client sends and answers with the recorded answer that the user message names."""

    async def messages(self, request: web.Request) -> web.StreamResponse:
        try:
            turn = parse_messages(await request.read())
        except RequestError as error:
            return web.json_response(error_body(error), status=error.status, headers=error.headers)
        if not turn.stream:
            return web.json_response(message_of(ANSWERS[turn.text]))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        stream = AnthropicStream(turn.prompt_tokens)
        for piece in STREAMS.get(turn.text, STREAMS["cut"][:1]):
            await response.write(stream.feed(piece) + PING)
        broken = RequestError("the provider hung up", status=502, code="upstream_error", charged=True)
        await response.write(stream.finish() if turn.text in STREAMS else stream.fail(broken))
        return response


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    app = web.Application()
    app.router.add_post("/v1/messages", Provider().messages)
    runner, loop = web.AppRunner(app), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="sr-x", max_retries=0) as client:
        yield client
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


EXPECTED = {  # blocks as (type, what it says), stop reason
    "text": ([("text", "Hello")], "end_turn"),
    "tools": ([("text", "go"), ("f", {"a": [1]}), ("g", {})], "tool_use"),
    "cut": ([("text", "Hel")], "max_tokens"),
    "refused": ([("text", "no")], "refusal"),
}


def blocks_of(message: anthropic.types.Message) -> list[tuple[str, Any]]:
    return [
        ("text", block.text) if block.type == "text" else (block.name, block.input)  # type: ignore[union-attr]
        for block in message.content
    ]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("streamed", [False, True])
def test_anthropics_client_reads_our_answers(client: anthropic.Anthropic, name: str, streamed: bool) -> None:
    asked: Any = {"model": "seqroute", "max_tokens": 9, "messages": [{"role": "user", "content": name}]}
    if streamed:
        with client.messages.stream(**asked) as stream:
            message: anthropic.types.Message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)
    assert (blocks_of(message), message.stop_reason) == EXPECTED[name]
    assert (message.model, message.id, message.role) == ("m", "c1", "assistant")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (30, 20, 7)
    if not streamed:
        assert message.model_extra == {"seqroute": {"cost_usd": 0.25}}
    ids = [block.id for block in message.content if block.type == "tool_use"]
    assert ids == (["t1", "t2"] if name == "tools" else [])


def test_anthropics_client_raises_its_own_errors_with_our_details(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="seqroute", max_tokens=0, messages=[{"role": "user", "content": "text"}])
    message = "max_tokens: should be greater than or equal to 1, got 0"
    fields = {"type": "invalid_request_error", "message": message, "code": "invalid_request"}
    assert caught.value.body == {"type": "error", "error": fields}


def test_a_stream_that_breaks_raises_in_anthropics_client(client: anthropic.Anthropic) -> None:
    texts: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="the provider hung up") as caught,
        client.messages.stream(
            model="seqroute", max_tokens=9, messages=[{"role": "user", "content": "broken"}]
        ) as stream,
    ):
        texts.extend(stream.text_stream)
    assert texts == ["Hel"]
    assert caught.value.body["error"]["charged"] is True  # type: ignore[index]


def events(data: bytes) -> list[Object]:
    return [json.loads(event.split(b"data: ")[1]) for event in data.split(b"\n\n") if event]


def test_each_piece_of_text_leaves_at_once_and_the_first_event_has_an_estimate() -> None:
    stream = AnthropicStream(prompt_tokens=42)
    first = events(stream.feed(chunk(content="Hel")))
    assert [event["type"] for event in first] == ["message_start", "content_block_start", "content_block_delta"]
    assert first[0]["message"]["usage"] == {"input_tokens": 42, "output_tokens": 0}
    assert [event["delta"]["text"] for event in events(stream.feed(chunk(content="lo")))] == ["lo"]
    last = events(stream.finish())
    assert [event["type"] for event in last] == ["content_block_stop", "message_delta", "message_stop"]
    assert last[1]["usage"] == {"input_tokens": 42, "output_tokens": 0}


def test_an_empty_stream_is_still_a_whole_message() -> None:
    kinds = [event["type"] for event in events(AnthropicStream(1).finish())]
    assert kinds == ["message_start", "message_delta", "message_stop"]


PIECES = st.lists(st.tuples(st.sampled_from(["text", 0, 1, 2]), st.sampled_from(["a", "b", "c"])), max_size=12)


@given(PIECES)
def test_however_pieces_interleave_every_block_is_whole_and_no_block_goes_on_after_its_end(
    pieces: list[tuple[str | int, str]],
) -> None:
    stream, seen, sent = AnthropicStream(1), set[str | int](), b""
    for key, piece in pieces:
        begin = {} if key in seen else {"id": f"id{key}", "name": f"f{key}"}
        delta = {"content": piece} if key == "text" else {"tool_calls": [call(int(key), arguments=piece, **begin)]}
        sent += stream.feed(chunk(**delta))
        seen.add(key)
    texts: dict[str, str] = {}
    names: list[str] = []
    for event in events(sent + stream.finish()):
        if event["type"] == "content_block_start":
            assert event["index"] == len(names)
            names.append(event["content_block"].get("name", "text"))
        if event["type"] == "content_block_delta":
            assert event["index"] == len(names) - 1
            delta = event["delta"]
            texts[names[-1]] = texts.get(names[-1], "") + delta.get("text", delta.get("partial_json", ""))
    expected: dict[str, str] = {}
    for key, piece in pieces:
        name = "text" if key == "text" else f"f{key}"
        expected[name] = expected.get(name, "") + piece
    assert texts == expected


def test_arguments_that_are_no_json_object_are_kept() -> None:
    calls = [{"id": "t", "function": {"name": "f", "arguments": text}} for text in ("{", "[1]", None)]
    blocks = message_of(answer(None, content=None, tool_calls=calls))["content"]
    assert [block["input"] for block in blocks] == [{"invalid_json": "{"}, {"invalid_json": "[1]"}, {}]
