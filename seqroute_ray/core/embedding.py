"""Texts to vectors: the Embedder protocol, the embedded default, and an OpenAI-compatible endpoint."""

import json
import logging
import math
import os
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqroute_ray.core.errors import ConfigError, StoppedError

DEFAULT_EMBEDDER = "wordllama"
_MAX_BATCH, _MAX_BATCH_CHARS = 64, 1 << 18  # a batch is padded to its longest text: 1 kB a token, about 4 characters


class Embedder(Protocol):
    """Anything that maps texts to vectors; `name` is stored in the policy artefact."""

    name: str

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """[N, D] float32, rows of unit length."""
        ...


def unit_rows(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows to length 1; an all-zero row (an empty text) stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


class WordLlamaEmbedder:
    """Static 256-d token embeddings whose weights ship in the wheel: no network, no torch, under 0.1 ms a text."""

    name = DEFAULT_EMBEDDER

    def __init__(self) -> None:
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        import wordllama  # loaded when used: 0.4 s

        root.handlers[:], root.level = handlers, level  # its import configures logging for the whole process
        # The wheel's own folder as cache and no downloads: nothing is fetched, ever.
        folder = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        if len(texts) == 1:
            return self._one(texts[0])[None]
        vectors = np.empty((len(texts), self._model.embedding.shape[1]), dtype=np.float32)
        for batch in _batches_of_like_length(texts):
            vectors[batch] = self._model.embed([texts[at] for at in batch])
        return unit_rows(vectors)

    def _one(self, text: str) -> NDArray[np.float32]:
        """[D] the mean of its tokens at unit length, as the model's own batches have it; in half their time."""
        ids = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        table = self._model.embedding
        if not ids:
            return np.zeros(table.shape[1], dtype=np.float32)
        mean = np.add.reduce(table.take(ids, axis=0, mode="clip"), axis=0, dtype=np.float32)
        mean /= np.float32(len(ids))
        mean /= np.float32(max(math.sqrt(np.dot(mean, mean)), 1e-12))
        return np.asarray(mean)


def _batches_of_like_length(texts: list[str]) -> Iterator[list[int]]:
    """Positions, so that no batch is large when padded, whatever texts stand side by side."""
    batch: list[int] = []
    for at in sorted(range(len(texts)), key=lambda at: len(texts[at])):
        if batch and (len(batch) == _MAX_BATCH or (len(batch) + 1) * len(texts[at]) > _MAX_BATCH_CHARS):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


class OpenAIEmbedder:
    """An OpenAI-compatible `/embeddings` endpoint, named `openai:MODEL@BASE_URL`; key in EMBEDDINGS_API_KEY."""

    def __init__(self, model: str, base_url: str, timeout_s: float = 30.0) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"an embeddings base_url must start with http:// or https://, got {base_url!r}")
        self.name = f"openai:{model}@{base_url}"
        self._model, self._url, self._timeout_s = model, base_url.rstrip("/") + "/embeddings", timeout_s

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        headers = {"content-type": "application/json"}
        if key := os.environ.get("EMBEDDINGS_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        body = json.dumps({"model": self._model, "input": texts}).encode()
        request = urllib.request.Request(self._url, data=body, headers=headers)  # noqa: S310 - scheme checked above
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # nosec B310  # noqa: S310
                rows = json.load(response)["data"]
        except OSError as error:
            raise StoppedError(f"embeddings endpoint {self._url}: {error}; is it up, and the key right?") from error
        ordered = sorted(rows, key=lambda row: int(row["index"]))
        return unit_rows(np.array([row["embedding"] for row in ordered], dtype=np.float32))


@cache
def load_embedder(name: str) -> Embedder:
    """The embedder called `wordllama` or `openai:MODEL@BASE_URL`. Raises ConfigError.

    One a process: it has no state but its weights, and all policies of a server share them.
    """
    if name == DEFAULT_EMBEDDER:
        return WordLlamaEmbedder()
    kind, _, rest = name.partition(":")
    model, _, base_url = rest.rpartition("@")
    if kind == "openai" and model and base_url:
        return OpenAIEmbedder(model, base_url)
    raise ConfigError(f"unknown embedder {name!r}; use 'wordllama' or 'openai:MODEL@BASE_URL'")
