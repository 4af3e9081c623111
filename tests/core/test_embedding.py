"""Embedders: the real embedded one, and the OpenAI-compatible one against a real local HTTP server."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.core.embedding import DEFAULT_EMBEDDER, WordLlamaEmbedder, load_embedder, unit_rows
from seqroute_ray.core.errors import ConfigError

TEXTS = ["What is 7 times 8?", "What is 9 times 6?", "Zeichne mir ein Schaf.", "def f(x): return x[::-1]"]


@pytest.fixture(scope="module")
def wordllama() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def test_the_default_embedder_gives_unit_rows_of_256_numbers(wordllama: WordLlamaEmbedder) -> None:
    vectors = wordllama.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_text_has_one_vector_whatever_stands_beside_it(wordllama: WordLlamaEmbedder) -> None:
    together = wordllama.embed(TEXTS)
    again = load_embedder(DEFAULT_EMBEDDER).embed(TEXTS)
    np.testing.assert_array_equal(together, again)
    alone = np.concatenate([wordllama.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_texts_of_any_length_keep_their_places(wordllama: WordLlamaEmbedder) -> None:
    texts = [text * repeats for repeats in (300_000, 1, 50, 7) for text in ("ab ", "c ")]
    alone = np.concatenate([wordllama.embed([text]) for text in texts])
    np.testing.assert_array_equal(wordllama.embed(texts), alone)
    assert wordllama.embed([]).shape == (0, 256)


def test_texts_of_one_kind_are_closer_than_others(wordllama: WordLlamaEmbedder) -> None:
    likeness = wordllama.embed(TEXTS) @ wordllama.embed(TEXTS).T
    assert likeness[0, 1] > likeness[0, 2:].max()


def test_the_default_embedder_never_touches_the_network() -> None:
    code = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
from seqroute_ray.core.embedding import WordLlamaEmbedder
print(WordLlamaEmbedder().embed(["hello"]).shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 256) False"), done.stderr


@given(st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=5))
def test_unit_rows_keep_the_direction_and_leave_zero_rows_alone(rows: list[list[float]]) -> None:
    vectors = np.where(np.abs(rows) < 1e-3, 0.0, rows)
    scaled = unit_rows(vectors)
    for vector, unit in zip(vectors, scaled, strict=True):
        length = float(np.linalg.norm(vector))
        np.testing.assert_allclose(unit * length, vector, atol=1e-4)
        assert np.linalg.norm(unit) == pytest.approx(1.0 if length else 0.0, abs=1e-5)


@dataclass
class Endpoint:
    """A local /embeddings endpoint and what it was asked."""

    base_url: str
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Answers text i with the vector (length of the text, i), rows in reversed order."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.paths.append(self.path)
            seen.keys.append(self.headers["authorization"])
            seen.bodies.append(body)
            rows = [{"index": i, "embedding": [len(text), i]} for i, text in enumerate(body["input"])]
            answer = json.dumps({"object": "list", "data": rows[::-1]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        seen = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


def test_an_endpoint_is_asked_once_and_its_rows_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDINGS_API_KEY", "sk-ours")
    with endpoint() as seen:
        name = f"openai:some-model@{seen.base_url}"
        embedder = load_embedder(name)
        vectors = embedder.embed(["aaa", "b", "cc"])
    assert embedder.name == name
    np.testing.assert_allclose(vectors, [[1, 0], [0.5**0.5, 0.5**0.5], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    assert vectors.dtype == np.float32
    assert seen.paths == ["/v1/embeddings"]
    assert seen.keys == ["Bearer sk-ours"]
    assert seen.bodies == [{"model": "some-model", "input": ["aaa", "b", "cc"]}]


def test_without_a_key_no_authorization_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDDINGS_API_KEY", raising=False)
    with endpoint() as seen:
        load_embedder(f"openai:some-model@{seen.base_url}/").embed(["a"])
    assert seen.keys == [None]
    assert seen.paths == ["/v1/embeddings"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bert", "unknown embedder 'bert'; use 'wordllama' or 'openai:MODEL@BASE_URL'"),
        ("", "unknown embedder ''"),
        ("openai:", "unknown embedder"),
        ("openai:model", "unknown embedder 'openai:model'"),
        ("openai:@http://host", "unknown embedder"),
        ("openai:model@", "unknown embedder"),
        ("cohere:model@http://host", "unknown embedder"),
        ("openai:model@file:///etc/passwd", "base_url must start with http:// or https://"),
    ],
)
def test_an_unknown_embedder_is_refused_with_the_way_out(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_embedder(name)
