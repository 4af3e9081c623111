"""Sample session logs from the bundled outcomes: what a team's own logs would look like, with every answer known."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.bundled import Outcomes, load_composed, load_outcomes
from seqroute_ray.data.catalogs import load_catalog

DEFAULT_POOL = ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "gpt-4o-2024-08-06")
FINDINGS_POOL = (
    "llama-3-8b-instruct",
    "gemini-1.5-flash",
    "gpt-4o-mini-2024-07-18",
    "gpt-4o-2024-08-06",
    "claude-3-5-sonnet-20241022",
)
Part = Literal["fit", "tune", "test"]
EPSILON_PREFIX = "epsilon-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Sessions composed from the questions of one part. Each field is a flag of `seqroute sample`."""

    num_sessions: int = 10_000  # of which every turn is a bundled question
    models: tuple[str, ...] = DEFAULT_POOL  # any subset of the bundled models; the order is the action index
    part: Part = "fit"  # a question belongs to one part only
    min_turns: int = 4  # of a session
    max_turns: int = 12  # of a session; lengths are uniform between the two
    focused_share: float = 0.5  # sessions that stay on one source; the others mix
    composed: bool = False  # the bundled sessions with the lengths of a real chat trace instead, at most num_sessions
    behaviour: str = "uniform"  # uniform, MODEL, or epsilon-MODEL
    epsilon: float = 0.2  # share of uniform turns of behaviour epsilon-MODEL
    catalog: Path | None = None  # JSON or YAML list of models with other prices; None is the bundled catalog
    with_outcomes: bool = False  # log every model's outcome of each turn, not only the acting one's
    seed: int = 0  # of questions, lengths and models

    def __post_init__(self) -> None:
        if self.num_sessions < 1:
            raise ConfigError(f"num_sessions must be at least 1, got {self.num_sessions}")
        if not 1 <= self.min_turns <= self.max_turns:
            raise ConfigError(f"turns need 1 <= min_turns <= max_turns, got {self.min_turns} and {self.max_turns}")
        for name in ("focused_share", "epsilon"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")


def write_sample(config: SampleConfig, path: Path) -> int:
    """Write logs in the log schema, one row a turn; returns how many. Raises ConfigError, UnknownModelError."""
    table = sample_logs(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def sample_logs(config: SampleConfig) -> pa.Table:
    """The log rows of `config.num_sessions` sessions. Questions do not repeat inside a session."""
    outcomes = load_outcomes().select(config.models)
    if config.catalog is not None:
        outcomes = replace(outcomes, catalog=load_catalog(config.catalog).select(config.models))
    rng = np.random.default_rng(config.seed)
    if config.composed:
        lengths, query = load_composed(config.part, config.num_sessions)
    else:
        lengths = rng.integers(config.min_turns, config.max_turns + 1, config.num_sessions)
        query = compose(outcomes, lengths, config, rng)
    action, propensity = behave(outcomes, len(query), config, rng)
    return log_table(outcomes, lengths, query, action, propensity, config)


def compose(outcomes: Outcomes, lengths: IntArray, config: SampleConfig, rng: np.random.Generator) -> IntArray:
    """[sum of lengths] questions of the part; a focused session stays on the source of a random question."""
    pool = np.flatnonzero(outcomes.part == config.part)
    by_source = {source: pool[outcomes.source[pool] == source] for source in np.unique(outcomes.source[pool])}
    fewest = min((len(questions) for questions in by_source.values()), default=0)
    if config.max_turns > fewest:
        raise ConfigError(
            f"max_turns must be at most {fewest}, the questions of the smallest source of part {config.part!r}, "
            f"got {config.max_turns}"
        )
    focused = rng.random(len(lengths)) < config.focused_share
    picked = []
    for length, stays in zip(lengths.tolist(), focused.tolist(), strict=True):
        among = by_source[outcomes.source[rng.choice(pool)]] if stays else pool
        picked.append(rng.choice(among, size=length, replace=False))
    return np.concatenate(picked)


def behave(
    outcomes: Outcomes, num_turns: int, config: SampleConfig, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """[N] logged actions and their propensities under the behaviour policy."""
    num_models = len(outcomes.catalog)
    share_uniform, preferred = 1.0, 0
    if config.behaviour != "uniform":
        explores = config.behaviour.startswith(EPSILON_PREFIX)
        share_uniform = config.epsilon if explores else 0.0
        preferred = outcomes.catalog.action(config.behaviour.removeprefix(EPSILON_PREFIX))
    action = np.where(rng.random(num_turns) < share_uniform, rng.integers(num_models, size=num_turns), preferred)
    return action, share_uniform / num_models + (1 - share_uniform) * (action == preferred)


def log_table(
    outcomes: Outcomes,
    lengths: IntArray,
    query: IntArray,
    action: IntArray,
    propensity: FloatArray,
    config: SampleConfig,
) -> pa.Table:
    """Rows in the log schema, one a turn."""
    session = np.repeat(np.arange(len(lengths)), lengths)
    turn = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    embedding = outcomes.embedding[query].astype(np.float32)
    columns = {
        "session_id": pa.array([f"{config.part}-{config.seed}-{s:06d}" for s in range(len(lengths))]).take(
            pa.array(session)
        ),
        "turn": pa.array(turn, pa.int32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1]),
        "model": pa.array(outcomes.catalog.names).take(pa.array(action)),
        "quality": pa.array(outcomes.quality[query, action].astype(np.float64)),
        "prompt_tokens": pa.array(outcomes.prompt_tokens[query, action]),
        "completion_tokens": pa.array(outcomes.completion_tokens[query, action]),
        "propensity": pa.array(propensity),
        "group_id": pa.array(outcomes.query_id.tolist()).take(pa.array(query)),
        "source": pa.array(outcomes.source.tolist()).take(pa.array(query)),
        "part": pa.repeat(config.part, len(query)),
    }
    if config.with_outcomes:
        everyone = np.ones((len(query), len(outcomes.catalog)), dtype=np.bool_)
        columns["outcomes"] = outcome_lists(outcomes, query, everyone)
    return pa.table(columns)


def outcome_lists(outcomes: Outcomes, query: IntArray, measured: BoolArray) -> pa.ListArray:
    """list<struct{model, quality, cost_usd}> of the measured [N, K] outcomes."""
    row, model = np.nonzero(measured)
    values = pa.StructArray.from_arrays(
        [
            pa.array(outcomes.catalog.names).take(pa.array(model)),
            pa.array(outcomes.quality[query[row], model].astype(np.float64)),
            pa.array(outcomes.cost_usd[query[row], model]),
        ],
        names=["model", "quality", "cost_usd"],
    )
    offsets = np.concatenate([[0], np.cumsum(measured.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
