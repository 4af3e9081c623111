"""Fitted Q evaluation: the table of exact dynamic programming, and models that did not see what they judge."""

from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.evaluation.ope_estimators import doubly_robust, per_decision, units
from seqroute_ray.evaluation.ope_fqe import action_features, fitted_q
from seqroute_ray.evaluation.ope_intervals import spread
from seqroute_ray.evaluation.ope_log import LoggedPaths, Weights, weigh
from tests.evaluation.ope_support import (
    BUDGET_UNITS,
    UNIT_NUSD,
    cut,
    draw_log,
    exact_value,
    state_features,
    thrifty_target,
)
from tests.support import make_layout, make_sessions, make_turns


def world(num_sessions: int, seed: int = 0) -> tuple[LoggedPaths, Weights, np.ndarray]:
    paths = cut(draw_log(num_sessions, np.random.default_rng(seed)), BUDGET_UNITS * UNIT_NUSD)
    return paths, weigh(paths, thrifty_target(paths)), state_features(paths)


def test_a_table_learns_the_exact_value_of_the_target() -> None:
    paths, weights, features = world(6000)
    model = fitted_q(paths, weights, features)
    first = model.value[paths.sessions.turn == 0]
    assert np.ptp(first) < 0.15  # one model a pair of folds, each of its own part of the log
    assert first.mean() == pytest.approx(exact_value(), abs=0.03)


def test_a_good_model_makes_the_interval_narrower() -> None:
    paths, weights, features = world(2000)
    unit = units(paths.sessions, "session")
    plain = spread(per_decision(paths, weights, unit).influence(), paths.sessions).error
    robust = doubly_robust(paths, weights, unit, fitted_q(paths, weights, features))
    assert spread(robust.influence(), paths.sessions).error < 0.85 * plain


def test_a_turn_is_judged_by_a_model_that_saw_neither_its_group_nor_its_session() -> None:
    paths, _, features = world(200)
    shared = np.array([f"q{row % 50}" for row in range(len(features))])
    paths = replace(paths, sessions=replace(paths.sessions, group_id=shared))
    weights = weigh(paths, thrifty_target(paths))
    before = fitted_q(paths, weights, features)
    group, session = paths.sessions.group_id == "q7", np.repeat(np.arange(200), 3) == 11
    for touched in (group, session):
        quality = np.where(touched, 1 - paths.sessions.quality, paths.sessions.quality)
        other = replace(paths, sessions=replace(paths.sessions, quality=quality))
        after = fitted_q(other, weights, features)
        for name in ("reward", "q_value", "value"):
            np.testing.assert_array_equal(getattr(before, name)[touched], getattr(after, name)[touched])
            assert (getattr(before, name) != getattr(after, name)).any()


def test_unjudged_turns_teach_what_the_judged_ones_of_their_kind_do() -> None:
    paths, weights, features = world(6000)
    quality = np.where(np.random.default_rng(1).random(len(features)) < 0.5, np.nan, paths.sessions.quality)
    halved = replace(paths, sessions=replace(paths.sessions, quality=quality.astype(np.float32)))
    model = fitted_q(halved, weights, features)
    assert model.value[paths.sessions.turn == 0].mean() == pytest.approx(exact_value(), abs=0.04)


def test_features_are_finite_whatever_is_left() -> None:
    layout, turns = make_layout(3), make_turns(4, 3)
    features = action_features(layout, turns, np.array([0.0, 1e-9, 0.01, 1e3]), np.array([0, 1, 2, 30]))
    assert features.shape[:2] == (4, 3)
    assert np.isfinite(features).all()
    assert (np.abs(features) < 50).all()  # of about unit size: one ridge penalty is for all
    sessions = make_sessions([4], 3)
    assert len(features) == len(sessions.action)
