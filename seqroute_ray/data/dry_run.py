"""What relabeling would write, from a sample: nothing is written."""

from dataclasses import dataclass

import numpy as np

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.hbr import relabel
from seqroute_ray.core.sessions import fixed_binary
from seqroute_ray.data.relabel import RelabelConfig, refuse_paths_without_outcomes
from seqroute_ray.data.session_file import SessionFile

ESTIMATES_BYTES = 4 * len(ds.ESTIMATE_COLUMNS)  # a turn and model; noise hardly compresses


@dataclass(frozen=True)
class RelabelPlan:
    """Counts of sessions and turns are exact; those of transitions and bytes are scaled up from one shard."""

    num_sessions: int
    num_turns: int
    num_shards: int
    about_num_transitions: int
    about_bytes: int
    about_bankrupt_share: float
    reference_cost_usd: float
    budgets_usd: tuple[float, ...]  # that every path gets; or the edges of the intervals that one is drawn from
    budgets_are_drawn: bool
    sampled_sessions: int


def plan_relabeling(config: RelabelConfig) -> RelabelPlan:
    """Relabel one shard in memory. Raises the errors of relabel_sessions."""
    source = SessionFile.scan(config.sessions)
    refuse_paths_without_outcomes(config, source)
    sample = next(source.groups())
    rows = relabel(sample, source.reference_cost_usd, config.hbr)
    embedding_bytes = fixed_binary(sample.embedding).nbytes
    turn_bytes = embedding_bytes + ESTIMATES_BYTES * len(source.catalog) * len(sample.action)
    scale = float(source.num_sessions.sum() / sample.num_sessions)
    given = config.hbr.given_budgets_usd(source.reference_cost_usd)
    edges = np.geomspace(config.hbr.min_budget, config.hbr.max_budget, config.hbr.num_budgets + 1)
    return RelabelPlan(
        num_sessions=int(source.num_sessions.sum()),
        num_turns=int(source.num_turns.sum()),
        num_shards=int(np.count_nonzero(source.num_sessions)),
        about_num_transitions=round(len(rows) * scale),
        about_bytes=round((len(ds.encode_transitions([rows])) + turn_bytes) * scale),
        about_bankrupt_share=float(rows.bankrupt.mean()) if len(rows) else 0.0,
        reference_cost_usd=source.reference_cost_usd,
        budgets_usd=given or tuple((edges * source.reference_cost_usd).tolist()),
        budgets_are_drawn=not given,
        sampled_sessions=sample.num_sessions,
    )
