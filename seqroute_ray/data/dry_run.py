"""What relabeling would write, from a sample: nothing is written."""

from dataclasses import dataclass

import numpy as np

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.hbr import relabel_in_chunks
from seqroute_ray.core.mdp import TurnFeatures, running_mean
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.data.relabel import RelabelConfig, check
from seqroute_ray.data.session_file import SessionFile
from seqroute_ray.data.shards import Counts


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
    """Relabel one shard in memory. Raises the errors of relabel.check."""
    source = SessionFile.scan(config.sessions)
    check(config, source)
    sample = next(source.groups())
    difficulty = np.zeros(len(sample.action), dtype=np.int8)
    counts = Counts(difficulty)
    chunks = relabel_in_chunks(sample, source.reference_cost_usd, config.hbr)
    num_bytes = len(ds.encode_transitions(counts.of(chunks)))
    num_bytes += len(ds.encode_turns(sample.embedding, stand_ins(sample), difficulty))
    scale = float(source.num_sessions.sum() / sample.num_sessions)
    given = config.hbr.given_budgets_usd(source.reference_cost_usd)
    edges = np.geomspace(config.hbr.min_budget, config.hbr.max_budget, config.hbr.num_budgets + 1)
    return RelabelPlan(
        num_sessions=int(source.num_sessions.sum()),
        num_turns=int(source.num_turns.sum()),
        num_shards=int(np.count_nonzero(source.num_sessions)),
        about_num_transitions=round(counts.num_transitions * scale),
        about_bytes=round(num_bytes * scale),
        about_bankrupt_share=counts.num_bankrupt / max(counts.num_transitions, 1),
        reference_cost_usd=source.reference_cost_usd,
        budgets_usd=given or tuple((edges * source.reference_cost_usd).tolist()),
        budgets_are_drawn=not given,
        sampled_sessions=sample.num_sessions,
    )


def stand_ins(sessions: Sessions) -> TurnFeatures:
    """As wide as the features, and equal for equal queries, as those are: they compress alike, without any fit."""
    num_models, num_types = len(sessions.catalog), len(np.unique(sessions.source))

    def columns(width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return sessions.embedding[:, np.arange(width) % sessions.embedding.shape[1]].astype(np.float32)

    estimates = Estimates(*(columns(num_models) for _ in ds.ESTIMATE_COLUMNS))
    return TurnFeatures(estimates, running_mean(columns(num_types + 1), sessions.offsets))
