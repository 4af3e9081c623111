"""The bundled sample: outcomes of 26 real models on 2,840 questions, as numbers only."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import DEFAULT_EMBEDDER
from seqroute_ray.core.sessions import from_fixed_binary

EMBEDDER = DEFAULT_EMBEDDER


@dataclass(frozen=True)
class Outcomes:
    """Measured outcomes of Q questions and K models."""

    catalog: Catalog
    query_id: NDArray[np.str_]  # [Q]
    source: NDArray[np.str_]  # [Q] gsm8k, math_l5 or cruxeval_o
    part: NDArray[np.str_]  # [Q] fit, tune or test
    embedding: NDArray[np.float16]  # [Q, D]
    quality: NDArray[np.float32]  # [Q, K] 0 or 1
    prompt_tokens: IntArray  # [Q, K]
    completion_tokens: IntArray  # [Q, K]

    @property
    def cost_usd(self) -> FloatArray:
        """[Q, K] price of each answer."""
        return self.catalog.cost_usd(np.arange(len(self.catalog)), self.prompt_tokens, self.completion_tokens)

    def select(self, names: tuple[str, ...]) -> "Outcomes":
        """The sub-pool `names`, in that order. Raises UnknownModelError."""
        actions = [self.catalog.action(name) for name in names]
        return Outcomes(
            self.catalog.select(names),
            self.query_id,
            self.source,
            self.part,
            self.embedding,
            self.quality[:, actions],
            self.prompt_tokens[:, actions],
            self.completion_tokens[:, actions],
        )


@cache
def load_outcomes() -> Outcomes:
    """The whole bundled outcome matrix."""
    folder = files("seqroute_ray.data") / "bundled"
    catalog = Catalog.from_json(json.loads((folder / "catalog.json").read_text()))
    with as_file(folder / "queries.parquet") as path:
        table = pq.read_table(path)

    def texts(name: str) -> NDArray[np.str_]:
        return np.array(table[name].to_pylist(), dtype=np.str_)

    def matrix(name: str) -> IntArray:
        return np.asarray(table[name].combine_chunks().flatten()).reshape(-1, len(catalog)).astype(np.int64)

    return Outcomes(
        catalog=catalog,
        query_id=texts("query_id"),
        source=texts("source"),
        part=texts("part"),
        embedding=from_fixed_binary(table["embedding"].combine_chunks()),
        quality=matrix("quality").astype(np.float32),
        prompt_tokens=matrix("prompt_tokens"),
        completion_tokens=matrix("completion_tokens"),
    )


def load_composed(part: str, max_sessions: int) -> tuple[IntArray, IntArray]:
    """The composed sessions of a part: their lengths [S], and the question [sum of lengths] of each turn."""
    with as_file(files("seqroute_ray.data") / "bundled" / "sessions.parquet") as path:
        turns = pq.read_table(path, filters=[("part", "=", part)])
    _, session = np.unique(np.array(turns["session_id"].to_pylist(), dtype=np.str_), return_inverse=True)
    kept = session < max_sessions  # rows are in order of session and turn
    row_of = {query_id: row for row, query_id in enumerate(load_outcomes().query_id.tolist())}
    query = np.array([row_of[query_id] for query_id in turns["query_id"].to_pylist()], dtype=np.int64)
    return np.bincount(session[kept]), query[kept]
