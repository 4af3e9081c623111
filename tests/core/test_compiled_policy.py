"""One turn at a time against the batch path, which defines it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seqroute_ray.core import mdp, policy
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.compiled_policy import CompiledPolicy, Outlook, Turn, affordable, lambda_greedy
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import OutcomeEstimator
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, encode_state
from seqroute_ray.core.policy import Perceptron, PolicyArtefact, QNetwork
from seqroute_ray.core.queries import UNKNOWN_TYPE, Queries
from tests.support import DIMS, MEAN_COST_USD, SUMMARY_WIDTH, TYPES, make_artefact, make_risk

MAX_TURN = 10  # beyond the last of the layout's 8
# Mean and deviation of log prompt tokens: ordinary, of prompts of one length, of logs that do not count them.
LOG_TOKENS = st.sampled_from([(3.5, 0.8), (3.5, np.inf), (0.0, np.inf)])
REMAINING_USD = st.one_of(st.sampled_from([0.0, 1e-9, MEAN_COST_USD]), st.floats(0, 20 * MEAN_COST_USD))
WIDTHS = st.lists(st.integers(1, 9), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**32 - 1)


def random_network(layout: StateLayout, hidden: Sequence[int], risk_hidden: Sequence[int], seed: int) -> QNetwork:
    """Heads of any depth."""
    rng = np.random.default_rng(seed)

    def perceptron(num_own: int, widths: Sequence[int]) -> Perceptron:
        shapes = pairwise([layout.num_context + num_own, *widths, 1])
        drawn = [(rng.normal(scale=a**-0.5, size=(a, b)), rng.normal(size=b)) for a, b in shapes]
        return Perceptron([(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in drawn])

    heads = perceptron(NUM_AFTER - NUM_RISK, hidden), perceptron(NUM_AFTER, risk_hidden)
    return QNetwork(*heads, layout.num_context, float(rng.normal()))


def without_types(estimator: OutcomeEstimator) -> OutcomeEstimator:
    """As fitted on logs that name no type of task."""
    features = replace(
        estimator.features, types=np.array([UNKNOWN_TYPE]), type_weights=np.zeros((DIMS + 1, 1), dtype=np.float32)
    )
    of_one_type = {
        name: getattr(estimator, name)[2:]  # [2 + D] of [4 + D] rows
        for name in ("quality_weights", "token_weights", "spread_weights", "runaway_weights")
    }
    return replace(estimator, features=features, **of_one_type)


@st.composite
def policies(draw: st.DrawFn) -> PolicyArtefact:
    """Of random weights; of some a model is free, some know no types or no prompt's length, some have a plan."""
    num_models, seed = draw(st.integers(1, 6)), draw(SEEDS)
    artefact = make_artefact(num_models, seed)
    estimator = without_types(artefact.estimator) if draw(st.booleans()) else artefact.estimator
    features = replace(estimator.features, log_tokens=np.array(draw(LOG_TOKENS), dtype=np.float32))
    layout = replace(artefact.layout, summary_width=features.summary_width)
    risk = make_risk(num_models, features.num_types, seed=seed) if draw(st.booleans()) else None
    first, *others = artefact.catalog.models
    if draw(st.booleans()):
        first = replace(first, usd_per_m_input=0.0, usd_per_m_output=0.0)
    return replace(
        artefact,
        catalog=Catalog((first, *others)),
        layout=layout,
        estimator=replace(estimator, features=features, risk=risk),
        network=random_network(layout, draw(WIDTHS), draw(WIDTHS), seed),
    )


@st.composite
def turns(draw: st.DrawFn, summary_width: int) -> Turn:
    """Also those of a zero embedding, an unknown type or length, no money, and beyond the last turn."""
    rng, num_earlier = np.random.default_rng(draw(SEEDS)), draw(st.integers(0, MAX_TURN))
    return Turn(
        embedding=draw(st.sampled_from([0.0, 1.0])) * rng.normal(size=DIMS),
        task_type=draw(st.sampled_from([UNKNOWN_TYPE, *TYPES, "verse"])),
        prompt_tokens=draw(st.one_of(st.just(0), st.integers(1, 100_000))),
        remaining_usd=draw(REMAINING_USD),
        num_earlier=num_earlier,
        earlier_summary=(num_earlier * rng.normal(size=summary_width)).tolist(),
    )


def by_batch(artefact: PolicyArtefact, turn: Turn) -> Outlook:
    """The definition."""
    queries = Queries(turn.embedding[None], np.array([turn.task_type]), np.array([turn.prompt_tokens]))
    summary = artefact.estimator.features.summary(queries)
    estimates = artefact.estimator.predict_from(summary, queries, artefact.catalog)
    history = ((np.array(turn.earlier_summary) + summary) / (turn.num_earlier + 1)).astype(np.float32)
    remaining_usd, number = np.array([turn.remaining_usd]), np.array([turn.num_earlier])
    values = artefact.network.values(
        encode_state(artefact.layout, TurnFeatures(estimates, history), remaining_usd, number)
    )
    if artefact.estimator.risk is not None:
        planned = artefact.estimator.risk.at(summary[:, :-1], number, remaining_usd, estimates.cost_usd)
        values = replace(values, bankruptcy=planned)
    parts = (summary, estimates.cost_usd, estimates.cost_high_usd, values.quality, values.bankruptcy)
    return Outlook(*(part[0].tolist() for part in parts))


@settings(deadline=None, max_examples=300)  # the machine may be busy
@given(st.data())
def test_a_compiled_policy_expects_what_the_batch_path_expects(data: st.DataObject) -> None:
    artefact = data.draw(policies())
    turn = data.draw(turns(artefact.layout.summary_width))
    ours, theirs = CompiledPolicy(artefact).outlook(turn), by_batch(artefact, turn)
    for name, expected in theirs._asdict().items():
        np.testing.assert_allclose(getattr(ours, name), expected, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(ours.cost_usd, theirs.cost_usd, rtol=1e-5)
    np.testing.assert_allclose(ours.cost_high_usd, theirs.cost_high_usd, rtol=1e-5)


NUMBERS = arrays(np.float64, (4, 5), elements=st.integers(0, 3))  # small integers: ties


@given(NUMBERS, st.sampled_from([0.0, 1.0, 2.5]), st.integers(0, 3))
def test_what_fits_and_what_is_best_is_as_in_the_batch_path(
    numbers: np.ndarray, lambda_per_usd: float, remaining_usd: int
) -> None:
    quality, bankruptcy, cost_usd, high_usd = numbers
    values = policy.Values(quality[None].astype(np.float32), bankruptcy[None].astype(np.float32))
    q_values, allowed = values.q_values(2.0), mdp.affordable(cost_usd[None], high_usd[None], np.array([remaining_usd]))
    best = policy.lambda_greedy(q_values, cost_usd[None], allowed, lambda_per_usd)
    ours = Outlook([], cost_usd.tolist(), high_usd.tolist(), quality.tolist(), bankruptcy.tolist())
    fits = affordable(ours.cost_usd, ours.cost_high_usd, remaining_usd)
    assert fits == allowed[0].tolist()
    assert ours.q_values(2.0) == q_values[0].tolist()
    assert lambda_greedy(ours.q_values(2.0), ours.cost_usd, fits, lambda_per_usd) == best[0]


def turn_of(embedding: np.ndarray) -> Turn:
    return Turn(
        embedding=embedding,
        task_type=UNKNOWN_TYPE,
        prompt_tokens=1,
        remaining_usd=1.0,
        num_earlier=0,
        earlier_summary=[0.0] * SUMMARY_WIDTH,
    )


@pytest.mark.parametrize("entry", [1e4, -1e4])
def test_an_absurd_embedding_is_no_crash(entry: float) -> None:
    assert len(CompiledPolicy(make_artefact()).outlook(turn_of(np.full(DIMS, entry))).quality) == 2


def test_an_embedding_of_another_width_is_refused() -> None:
    with pytest.raises(DataError, match=rf"fitted on {DIMS}-d embeddings, got shape \({DIMS + 1},\)"):
        CompiledPolicy(make_artefact()).outlook(turn_of(np.zeros(DIMS + 1)))
