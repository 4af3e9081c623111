"""Make the bundled sample from the measured outcomes: numbers only, no question text.

    python -m seqroute_ray.data.make_bundled --source FOLDER [--out FOLDER]

FOLDER holds pool2024_outcomes, pool2024_models, sessions_pool2024 and mint_{models,tasks,sessions,turns} (Parquet).
The files it writes are the package's `data/bundled/`, byte for byte, with the pinned versions of constraints.txt.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqroute_ray.core.attempts import ANSWER, INVALID, TOOL
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import WordLlamaEmbedder

MINT_TURNS = 5
MINT_KINDS = {"": 0, "tool": TOOL, "answer": ANSWER, "invalid": INVALID}


def make_catalog(models: Path) -> Catalog:
    rows = pq.read_table(models).drop_columns(["price_key", "price_match"])
    rows = rows.rename_columns(["name", *rows.column_names[1:]])
    prices = ("usd_per_m_input", "usd_per_m_output")  # rounded: 0.99, not 0.9900000000000001
    return Catalog.from_json({**row, **{name: round(row[name], 6) for name in prices}} for row in rows.to_pylist())


def make_queries(source: Path, catalog: Catalog, part_by_query: dict[str, str]) -> pa.Table:
    """One row a question; the outcome columns are lists in catalog order."""
    table = pq.read_table(source / "pool2024_outcomes.parquet")
    table = table.set_column(0, "query_id", table["query_id"].cast(pa.string()))
    actions = pa.array([catalog.action(name) for name in table["model"].to_pylist()], pa.int8())
    table = table.append_column("action", actions).sort_by([("query_id", "ascending"), ("action", "ascending")])
    num_models = len(catalog)
    first = table.take(pa.array(np.arange(0, table.num_rows, num_models)))
    embeddings = WordLlamaEmbedder().embed(first["text"].to_pylist()).astype(np.float16)

    def per_model(name: str, dtype: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pc.cast(table[name].combine_chunks(), dtype), num_models)

    return pa.table(
        {
            "query_id": first["query_id"],
            "source": first["source"].cast(pa.string()),
            "part": pa.array([part_by_query[query_id] for query_id in first["query_id"].to_pylist()]),
            "embedding": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(embeddings.shape[1] * 2), len(embeddings), [None, pa.py_buffer(embeddings.tobytes())]
            ),
            "quality": per_model("quality", pa.int8()),
            "prompt_tokens": per_model("prompt_tokens", pa.int16()),
            "completion_tokens": per_model("completion_tokens", pa.int16()),
        }
    )


def make_sessions(source: Path) -> pa.Table:
    """The composed sessions, one row a turn; turns count from 0 here (from 1 in the source)."""
    table = pq.read_table(source / "sessions_pool2024.parquet")
    columns = {name: table[name].cast(pa.string()) for name in ("session_id", "part", "flavour", "query_id")}
    columns["turn"] = pc.subtract(table["turn"], pa.scalar(1, pa.int8()))
    return pa.table(columns).sort_by([("session_id", "ascending"), ("turn", "ascending")])


def make_mint_tasks(source: Path) -> pa.Table:
    """One row a task."""
    table = pq.read_table(source / "mint_tasks.parquet").sort_by("task_key")
    columns = {name: table[name].cast(pa.string()) for name in ("task_key", "dataset", "part")}
    twin = pc.and_(pc.is_valid(table["pool2024_twin"]), pc.not_equal(columns["part"], "fit"))
    return pa.table({"task_id": columns.pop("task_key"), **columns, "held_out_twin": twin})


def make_mint_attempts(source: Path, catalog: Catalog) -> pa.Table:
    """One row a (task, model), in order of both; turns as lists of MINT_TURNS, 0 beyond the last."""
    sessions, turns = (pq.read_table(source / f"mint_{name}.parquet").to_pylist() for name in ("sessions", "turns"))
    blank = {"prompt_tokens": 0, "completion_tokens": 0, "action": ""}
    turn_of = {(row["task_key"], row["model"], row["turn"]): row for row in turns}
    sessions.sort(key=lambda row: (row["task_key"], catalog.action(row["model"])))
    rows = []
    for session in sessions:
        key = (session["task_key"], session["model"])
        taken = [turn_of.get((*key, turn), blank) for turn in range(1, MINT_TURNS + 1)]
        rows.append(
            {
                "success": int(session["success"]),
                "num_turns": session["turns"],
                "prompt_tokens": session["prompt_tokens"],
                "completion_tokens": session["completion_tokens"],
                "turn_prompt_tokens": [turn["prompt_tokens"] for turn in taken],
                "turn_completion_tokens": [turn["completion_tokens"] for turn in taken],
                "turn_kind": [MINT_KINDS[turn["action"]] for turn in taken],
            }
        )
    tokens = pa.list_(pa.int32(), MINT_TURNS)
    types = [pa.int8(), pa.int8(), pa.int32(), pa.int32(), tokens, tokens, pa.list_(pa.int8(), MINT_TURNS)]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(zip(rows[0], types, strict=True))))


def make_bundled(source: Path, out: Path) -> None:
    """Write both catalogs, the queries and sessions of pool2024, the tasks and attempts of MINT."""
    out.mkdir(parents=True, exist_ok=True)
    catalog, mint = (make_catalog(source / f"{name}_models.parquet") for name in ("pool2024", "mint"))
    sessions = make_sessions(source)
    part_by_query = dict(zip(sessions["query_id"].to_pylist(), sessions["part"].to_pylist(), strict=True))
    for name, models in (("catalog", catalog), ("mint_catalog", mint)):
        (out / f"{name}.json").write_text(json.dumps(models.to_json(), indent=1) + "\n")
    tables = {
        "queries": make_queries(source, catalog, part_by_query),
        "sessions": sessions,
        "mint_tasks": make_mint_tasks(source),
        "mint_attempts": make_mint_attempts(source, mint),
    }
    for name, table in tables.items():
        pq.write_table(table, out / f"{name}.parquet", compression="zstd", compression_level=9, store_schema=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "bundled")
    arguments = parser.parse_args()
    make_bundled(arguments.source, arguments.out)
