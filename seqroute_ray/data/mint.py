"""Bundled MINT: recorded multi-turn attempts of 22 real models on 586 tasks, as numbers only."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray
from seqroute_ray.core.attempts import Attempts
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.money import to_nusd

MAX_TURNS = 5
MINT_POOL = ("Meta-Llama-3-8B-Instruct", "Meta-Llama-3-70B-Instruct", "gpt-4-0613")


@cache
def _tables() -> tuple[Catalog, dict[str, list[object]], dict[str, list[object]]]:
    folder = files("seqroute_ray.data") / "bundled"
    catalog = Catalog.from_json(json.loads((folder / "mint_catalog.json").read_text()))
    tables = []
    for name in ("mint_tasks", "mint_attempts"):
        with as_file(folder / f"{name}.parquet") as path:
            tables.append(pq.read_table(path).to_pydict())
    return catalog, tables[0], tables[1]


def load_mint(names: Sequence[str] | None = None) -> Attempts:
    """The attempts of a sub-pool, in its order; None: of all models. Raises UnknownModelError.

    A turn's cost is the attempt's cost times the turn's share of its price-weighted tokens: turn tokens do not add up
    to the recorded totals.
    """
    catalog, tasks, rows = _tables()
    num_tasks, num_models = len(tasks["task_id"]), len(catalog)

    def matrix(name: str) -> NDArray[np.int64]:
        return np.array(rows[name], dtype=np.int64).reshape(num_tasks, num_models, -1)

    total_usd = catalog.cost_usd(
        np.arange(num_models), matrix("prompt_tokens")[..., 0], matrix("completion_tokens")[..., 0]
    )
    turn_usd = catalog.cost_usd(
        np.arange(num_models)[:, None], matrix("turn_prompt_tokens"), matrix("turn_completion_tokens")
    )
    kind, num_turns = matrix("turn_kind"), np.maximum(matrix("num_turns")[..., 0], 1)
    taken = np.arange(MAX_TURNS) < num_turns[..., None]
    weight = np.where(taken, np.maximum(turn_usd, 1e-12), 0.0)
    picked = np.arange(num_models) if names is None else np.array([catalog.action(name) for name in names])
    cost_usd = total_usd[..., None] * weight / weight.sum(axis=2, keepdims=True)
    return Attempts(
        catalog=catalog if names is None else catalog.select(names),
        task_id=np.array(tasks["task_id"], dtype=np.str_),
        task_type=np.array(tasks["dataset"], dtype=np.str_),
        part=np.array(tasks["part"], dtype=np.str_),
        num_turns=num_turns[:, picked],
        success=matrix("success")[:, picked, 0].astype(np.bool_),
        cost_nusd=to_nusd(cost_usd)[:, picked],
        kind=kind[:, picked],
    )


def held_out_twins() -> BoolArray:
    """[N] tasks that are also questions of pool2024's tune or test part: nothing may be fitted on them."""
    _, tasks, _ = _tables()
    return np.array(tasks["held_out_twin"], dtype=np.bool_)
