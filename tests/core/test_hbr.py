"""Relabeling: exact book-keeping, monotone in the budget, independent of the batch."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core import hbr
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.hbr import HbrConfig, Transitions, paths_kind, relabel, relabel_in_chunks, sample_paths
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.random_bits import text_keys
from seqroute_ray.core.sessions import Sessions
from tests.support import make_sessions

REFERENCE_USD = 0.01


@st.composite
def random_sessions(draw: st.DrawFn) -> Sessions:
    some_are_long = st.integers(1, 6) | st.just(40)
    lengths = draw(st.lists(some_are_long, min_size=1, max_size=6))
    return make_sessions(lengths, num_models=draw(st.integers(1, 3)), seed=draw(st.integers(0, 2**32 - 1)))


configs = st.builds(
    HbrConfig,
    paths=st.sampled_from(["logged", "sampled", "all"]),
    num_paths=st.integers(1, 3),
    num_budgets=st.integers(1, 3),
    seed=st.integers(0, 100),
)


def assert_equal(left: Transitions, right: Transitions) -> None:
    for field in fields(Transitions):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


@given(random_sessions(), configs)
@settings(deadline=None)
def test_remaining_is_the_budget_minus_the_exact_running_sum_of_costs(sessions: Sessions, config: HbrConfig) -> None:
    t = relabel(sessions, REFERENCE_USD, config)
    starts = np.flatnonzero(t.turn == 0)
    for begin, end in zip(starts, [*starts[1:], len(t)], strict=True):
        budget, spent = int(t.remaining_nusd[begin]), 0  # Python integers: exact
        for row in range(begin, end):
            assert int(t.remaining_nusd[row]) == budget - spent
            assert bool(t.bankrupt[row]) == (int(t.cost_nusd[row]) > budget - spent)
            spent += int(t.cost_nusd[row])
            if row > begin:
                assert t.turn_row[row] == t.turn_row[row - 1] + 1
        assert t.terminated[end - 1]
        assert not t.terminated[begin : end - 1].any()


@given(random_sessions(), st.integers(1, 10_000_000), st.integers(1, 10_000_000))
@settings(deadline=None)
def test_more_budget_never_bankrupts_sooner(sessions: Sessions, budget_nusd: int, extra_nusd: int) -> None:
    lengths = []
    for amount in (budget_nusd, budget_nusd + extra_nusd):
        t = relabel(sessions, REFERENCE_USD, HbrConfig(budgets_usd=(amount / 1e9,)))
        lengths.append(np.bincount(np.cumsum(t.turn == 0) - 1) - np.bincount(np.cumsum(t.turn == 0) - 1, t.bankrupt))
    assert (lengths[1] >= lengths[0]).all()


@given(random_sessions(), configs, st.data())
@settings(deadline=None)
def test_a_sessions_transitions_do_not_depend_on_its_batch(
    sessions: Sessions, config: HbrConfig, data: st.DataObject
) -> None:
    together = relabel(sessions, REFERENCE_USD, config)
    s = data.draw(st.integers(0, sessions.num_sessions - 1))
    first, last = int(sessions.offsets[s]), int(sessions.offsets[s + 1])
    alone = relabel(sessions.take(np.array([s])), REFERENCE_USD, config)
    mine = (together.turn_row >= first) & (together.turn_row < last)
    assert_equal(replace(alone, turn_row=alone.turn_row + first), together.take(np.flatnonzero(mine)))


def test_taking_apart_and_concatenating_changes_nothing() -> None:
    t = relabel(make_sessions([3, 5]), REFERENCE_USD, HbrConfig(num_budgets=3))
    parts = np.split(np.arange(len(t)), [1, len(t) // 2])
    assert_equal(Transitions.concatenate([t.take(rows) for rows in parts]), t)
    assert t.take(np.array([4, 4])).turn_row.tolist() == [t.turn_row[4]] * 2


def test_a_case_worked_by_hand() -> None:
    sessions = make_sessions([3], num_models=2)
    sessions.action[:] = [0, 1, 0]
    sessions.cost_nusd[:] = to_nusd(np.array([0.001, 0.004, 0.001]))
    sessions.quality[:] = [1.0, 0.5, 0.25]
    t = relabel(sessions, REFERENCE_USD, HbrConfig(budgets_usd=(0.004, 0.005, 0.006), bankruptcy_penalty=2.0))
    assert t.turn_row.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert t.remaining_nusd.tolist() == [4_000_000, 3_000_000, 5_000_000, 4_000_000, 0, 6_000_000, 5_000_000, 1_000_000]
    assert t.reward.tolist() == [1.0, -2.0, 1.0, 0.5, -2.0, 1.0, 0.5, 0.25]
    assert t.bankrupt.tolist() == [False, True, False, False, True, False, False, False]
    assert t.terminated.tolist() == [False, True, False, False, True, False, False, True]


def test_all_paths_of_a_session_are_its_whole_tree() -> None:
    sessions = make_sessions([3], num_models=2)
    t = relabel(sessions, REFERENCE_USD, HbrConfig(paths="all", budgets_usd=(1.0,)))
    paths = t.action.reshape(8, 3)
    assert {tuple(path) for path in paths.tolist()} == {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}
    np.testing.assert_array_equal(t.cost_nusd.reshape(8, 3), sessions.outcome_cost_nusd[np.arange(3), paths])


def test_a_turn_that_was_not_judged_keeps_its_cost_and_gives_no_reward() -> None:
    sessions = make_sessions([3], num_models=2)
    sessions.quality[1] = np.nan
    t = relabel(sessions, REFERENCE_USD, HbrConfig(budgets_usd=(1.0,)))
    assert t.turn.tolist() == [0, 2]
    assert int(t.remaining_nusd[1]) == int(to_nusd(1.0)) - int(sessions.cost_nusd[:2].sum())


def test_drawn_budgets_fill_every_stratum() -> None:
    config = HbrConfig(num_budgets=5, min_budget=0.01, max_budget=1.0)
    t = relabel(make_sessions([1] * 40), REFERENCE_USD, config)
    multiple = t.remaining_nusd.reshape(40, 5) / 1e9 / REFERENCE_USD
    stratum = np.floor(5 * np.log(multiple / 0.01) / np.log(100))
    np.testing.assert_array_equal(stratum, np.tile(np.arange(5), (40, 1)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budgets_usd": (0.0,)}, "budgets_usd must be > 0"),
        ({"min_budget": 2.0}, "min_budget < max_budget"),
        ({"num_paths": 0}, "num_paths must be at least 1"),
        ({"budget_multiples": (0.1, -1.0)}, "budget_multiples must be > 0"),
        ({"budgets_usd": (1.0,), "budget_multiples": (1.0,)}, "got both; leave one out"),
        ({"bankruptcy_penalty": 0.0}, "bankruptcy_penalty must be > 0 and finite, got 0.0"),
        ({"budgets_usd": (float("inf"),)}, "budgets_usd must be > 0 and finite"),
        ({"max_budget": float("inf")}, "min_budget < max_budget, finite"),
        ({"bankruptcy_penalty": float("inf")}, "bankruptcy_penalty must be > 0 and finite"),
        ({"bankruptcy_penalty": float("nan")}, "bankruptcy_penalty must be > 0 and finite, got nan"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HbrConfig(**fields)  # type: ignore[arg-type]


def test_a_session_with_more_paths_than_the_limit_gets_sampled_ones() -> None:
    sessions = make_sessions([2, 6], num_models=3)
    config = HbrConfig(paths="all", max_paths=9, num_paths=4, budgets_usd=(1.0,))
    kind, num_paths = paths_kind(sessions, config)
    assert (kind.tolist(), num_paths.tolist()) == (["all", "sampled"], [9, 4])
    t = relabel(sessions, REFERENCE_USD, config)
    assert len(t) == 9 * 2 + 4 * 6
    sampled = relabel(sessions.take(np.array([1])), REFERENCE_USD, replace(config, paths="sampled"))
    assert t.action[18:].tolist() == sampled.action.tolist()


def test_a_session_without_all_outcomes_keeps_its_logged_path() -> None:
    sessions = make_sessions([2, 3], num_models=2)
    sessions.outcome_cost_nusd[1, 0] = -1
    t = relabel(sessions, REFERENCE_USD, HbrConfig(paths="all", budgets_usd=(1.0,)))
    assert t.action[:2].tolist() == sessions.action[:2].tolist()
    assert len(t) == 2 + 8 * 3


def test_path_k_depends_on_seed_session_and_k_alone() -> None:
    keys = text_keys(3, ["a", "b"])
    many, few = sample_paths(keys, 3, 5, num_paths=6), sample_paths(keys[1:], 3, 5, num_paths=2)
    np.testing.assert_array_equal(many[1:, :2], few)
    assert not np.array_equal(sample_paths(text_keys(4, ["a", "b"]), 3, 5, num_paths=6), many)


def test_sampled_paths_mix_their_models_unevenly() -> None:
    """Counts of one model in paths of 6 turns: binomial under a mixture that is Dirichlet(1/2) of three."""
    actions = sample_paths(text_keys(0, map(str, range(2500))), 3, 6, num_paths=8)
    shares = np.random.default_rng(0).dirichlet([0.5] * 3, 200_000)[:, 0]
    expected = np.bincount(np.random.default_rng(1).binomial(6, shares), minlength=7) / 200_000
    for model in range(3):
        counts = np.bincount((actions == model).sum(axis=2).reshape(-1), minlength=7) / 20_000
        np.testing.assert_allclose(counts, expected, atol=0.015)


def test_multiples_are_of_the_reference_cost() -> None:
    sessions = make_sessions([3, 2], num_models=2)
    multiples = relabel(sessions, REFERENCE_USD, HbrConfig(budget_multiples=(0.5, 2.0)))
    dollars = relabel(sessions, REFERENCE_USD, HbrConfig(budgets_usd=(0.5 * REFERENCE_USD, 2 * REFERENCE_USD)))
    assert_equal(multiples, dollars)


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, config = make_sessions([5, 3, 5, 1, 4]), HbrConfig(paths="sampled", num_paths=2, num_budgets=2)
    whole = relabel(sessions, REFERENCE_USD, config)
    monkeypatch.setattr(hbr, "MAX_CELLS", 30)
    chunks = list(relabel_in_chunks(sessions, REFERENCE_USD, config))
    assert len(chunks) > 2
    assert_equal(Transitions.concatenate(chunks), whole)


@given(random_sessions(), configs)
@settings(deadline=None)
def test_rewards_and_costs_of_a_path_that_lives_are_those_of_its_outcomes(
    sessions: Sessions, config: HbrConfig
) -> None:
    rich = replace(config, budgets_usd=(1e3,))
    t = relabel(sessions, REFERENCE_USD, rich)
    path = np.cumsum(t.turn == 0) - 1
    quality, cost_nusd = (
        sessions.outcome_quality[t.turn_row, t.action],
        sessions.outcome_cost_nusd[t.turn_row, t.action],
    )
    np.testing.assert_allclose(np.bincount(path, t.reward), np.bincount(path, quality), rtol=1e-6)
    assert np.bincount(path, t.cost_nusd).tolist() == np.bincount(path, cost_nusd).tolist()
    paths = paths_kind(sessions, rich)[1]
    assert path.max() + 1 == paths.sum()
    assert len(t) == (paths * sessions.num_turns).sum()


@pytest.mark.parametrize(
    "fields",
    [{"budgets_usd": (1.0, 1e10)}, {"budgets_usd": (1e-12,)}, {"budget_multiples": (1e12,)}, {"max_budget": 1e12}],
)
def test_budgets_that_nano_dollars_cannot_count_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"budgets must be 1e-09 to 1e\+09 USD, got .*; give others"):
        relabel(make_sessions([2]), REFERENCE_USD, HbrConfig(**fields))
