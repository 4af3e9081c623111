"""Clean log rows to sessions: turns in order, money in nano-dollars, outcomes as matrices."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.log_schema import actions, group_key, numbers, outcome_cells, turn_cost_usd
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions


def build_sessions(table: pa.Table, catalog: Catalog, embedder_name: str, embeddings: FloatArray) -> Sessions:
    """Group rows that check_rows found clean; sessions are sorted by id, so the order of rows does not matter.

    table: columns as of log_schema.conform, logged models all in the catalog. embeddings: [N, D] of the rows. Outcomes
    of models outside the catalog (a sub-pool) are left out. The logged model's own outcome is taken from the row where
    a table with outcomes does not repeat it; of two qualities the row's counts.
    """
    order = np.asarray(pc.sort_indices(table, sort_keys=[("session_id", "ascending"), ("turn", "ascending")]))
    table = table.take(pa.array(order))
    first = np.flatnonzero(numbers(table["turn"]).value == 0)
    action, quality = actions(table["model"], catalog), _nan_for_null(table["quality"])
    cost_nusd = to_nusd(turn_cost_usd(table, catalog))
    outcome_quality, outcome_cost_nusd = _outcome_matrices(table, catalog, action, quality, cost_nusd)
    return Sessions(
        catalog=catalog,
        embedder=embedder_name,
        session_id=_texts(table["session_id"])[first],
        part=_texts(table["part"])[first],
        offsets=np.append(first, table.num_rows),
        embedding=np.asarray(embeddings, dtype=np.float16)[order],
        action=action,
        quality=quality,
        cost_nusd=cost_nusd,
        prompt_tokens=numbers(table["prompt_tokens"]).value.astype(np.int64),
        propensity=_nan_for_null(table["propensity"]),
        group_id=_texts(group_key(table)),
        source=_texts(table["source"]),
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost_nusd,
    )


def _texts(column: pa.ChunkedArray) -> NDArray[np.str_]:
    return np.array(pc.fill_null(column, "").to_pylist(), dtype=np.str_)


def _nan_for_null(column: pa.ChunkedArray) -> NDArray[np.float32]:
    known, value = numbers(column)
    return np.where(known, value, np.nan).astype(np.float32)


def _outcome_matrices(
    table: pa.Table, catalog: Catalog, action: IntArray, quality: NDArray[np.float32], cost_nusd: IntArray
) -> tuple[NDArray[np.float32], IntArray]:
    """[N, K] quality and cost of each model's answer; nothing is measured when the logs have no outcomes."""
    shape = (table.num_rows, len(catalog))
    outcome_quality = np.full(shape, np.nan, dtype=np.float32)
    outcome_cost_nusd = np.full(shape, NOT_MEASURED_NUSD, dtype=np.int64)
    if "outcomes" not in table.column_names:
        return outcome_quality, outcome_cost_nusd
    rows = np.arange(len(action))
    outcome_quality[rows, action], outcome_cost_nusd[rows, action] = quality, cost_nusd
    cells = outcome_cells(table, catalog)
    inside = cells.action >= 0
    row, model = cells.row[inside], cells.action[inside]
    outcome_quality[row, model] = np.where(cells.quality.known, cells.quality.value, np.nan)[inside]
    outcome_cost_nusd[row, model] = to_nusd(cells.cost_usd.value[inside])
    judged = np.flatnonzero(np.isfinite(quality))
    outcome_quality[judged, action[judged]] = quality[judged]
    return outcome_quality, outcome_cost_nusd
