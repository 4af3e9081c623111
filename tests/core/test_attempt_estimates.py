from dataclasses import replace

import numpy as np

from seqroute_ray.core.attempt_estimates import NUM_FOLDS, AttemptEstimates, estimate_attempts, task_folds
from seqroute_ray.core.attempts import INVALID, TOOL, Attempts
from seqroute_ray.core.fitting import fold_of
from tests.attempts_support import USD, by_hand, make_attempts, states_of

EVERY = np.ones(400, dtype=np.bool_)


def lawful(num_tasks: int = 400, seed: int = 0) -> Attempts:
    """Two turns an attempt. Even tasks are solved 9 times of 10, odd ones once; never after an invalid first turn.

    The second model costs ten times the first.
    """
    rng = np.random.default_rng(seed)
    attempts = make_attempts(num_tasks)
    shape = (num_tasks, 2)
    invalid = rng.random(shape) < 0.3
    chance = np.where(attempts.task_type == "even", 0.9, 0.1)[:, None]
    kind = np.zeros((*shape, 3), dtype=np.int64)
    kind[..., 0], kind[..., 1] = np.where(invalid, INVALID, TOOL), TOOL
    cost = np.zeros((*shape, 3), dtype=np.int64)
    cost[..., :2] = USD * np.array([1, 10])[None, :, None]
    return replace(
        attempts,
        num_turns=np.full(shape, 2),
        success=(rng.random(shape) < chance) & ~invalid,
        kind=kind,
        cost_nusd=cost,
    )


def test_chances_come_close_to_the_law_at_the_start_and_under_way() -> None:
    attempts = lawful()
    estimates = estimate_attempts(attempts, EVERY)
    start, _, _ = estimates.at(states_of(attempts, 100.0))
    even = attempts.task_type == "even"
    assert abs(start[even].mean() - 0.9 * 0.7) < 0.08
    assert abs(start[~even].mean() - 0.1 * 0.7) < 0.08
    later, _, _ = estimates.at(states_of(attempts, 100.0, model=0, turn=1))
    invalid = attempts.kind[:, 0, 0] == INVALID
    assert later[even & ~invalid, 0].mean() > 0.75
    assert later[even & invalid, 0].mean() < 0.25


def test_costs_are_of_the_next_turn_and_of_all_that_are_left() -> None:
    attempts = lawful()
    estimates = estimate_attempts(attempts, EVERY)
    _, next_usd, rest_usd = estimates.at(states_of(attempts, 100.0))
    np.testing.assert_allclose(next_usd.mean(axis=0), [1, 10], rtol=0.05)
    np.testing.assert_allclose(rest_usd.mean(axis=0), [2, 20], rtol=0.05)
    _, _, rest_usd = estimates.at(states_of(attempts, 100.0, model=1, turn=1))
    np.testing.assert_allclose(rest_usd.mean(axis=0), [2, 10], rtol=0.05)


def test_another_models_failure_is_bad_news_where_tasks_are_hard_for_all() -> None:
    attempts = lawful()
    hard = np.random.default_rng(1).random(len(attempts)) < 0.5
    together = replace(attempts, success=np.repeat(~hard[:, None], 2, axis=1))
    estimates = estimate_attempts(together, EVERY)
    fresh, _, _ = estimates.at(states_of(together, 100.0))
    after_failure = replace(states_of(together, 100.0), tried=np.tile([True, False], (len(attempts), 1)))
    shaken, _, _ = estimates.at(after_failure)
    assert (shaken[:, 1] < fresh[:, 1]).all()
    np.testing.assert_allclose(shaken[:, 0], fresh[:, 0])  # a model's own failure is no other's


def test_no_task_is_estimated_from_its_own_outcome() -> None:
    attempts = make_attempts(60, seed=3)
    fit = np.arange(60) < 50
    before = estimate_attempts(attempts, fit)
    fold = fold_of(attempts.task_id, NUM_FOLDS)
    own = np.flatnonzero(fit & (fold == fold[0]))
    flipped = attempts.success.copy()
    flipped[own] = ~flipped[own]
    after = estimate_attempts(replace(attempts, success=flipped), fit)
    np.testing.assert_array_equal(after.success_logit[own], before.success_logit[own])
    others = np.flatnonzero(fit & (fold != fold[0]))
    assert not np.array_equal(after.success_logit[others], before.success_logit[others])
    flipped = attempts.success.copy()
    flipped[50:] = ~flipped[50:]  # held out altogether
    held_out = estimate_attempts(replace(attempts, success=flipped), fit)
    for name, values in vars(before).items():
        np.testing.assert_array_equal(getattr(held_out, name), values, err_msg=name)


def test_what_is_read_at_a_state_worked_by_hand() -> None:
    attempts = by_hand([[True, True]], [[[1.0, 1.0], [1.0, 1.0]]])
    logit = np.array([[[0.0, 1.0], [2.0, 3.0]]], dtype=np.float32)
    shift = np.array([[[0.0, -1.0], [-2.0, 0.0]]], dtype=np.float32)
    estimates = AttemptEstimates(logit, shift, logit + 10, logit + 20)
    chance, next_usd, rest_usd = estimates.at(states_of(attempts, 1.0, model=1, turn=1))
    np.testing.assert_allclose(chance, 1 / (1 + np.exp([[0.0, -3.0]])))  # the one under way has not failed
    assert next_usd.tolist() == [[10.0, 13.0]]
    assert rest_usd.tolist() == [[20.0, 23.0]]
    failed = replace(states_of(attempts, 1.0), tried=np.array([[True, False]]))
    np.testing.assert_allclose(estimates.at(failed)[0], 1 / (1 + np.exp([[0.0, 0.0]])))  # 2 - 2


def test_outer_folds_are_others_than_those_of_cross_fitting() -> None:
    attempts = make_attempts(400)
    outer, inner = task_folds(attempts, 5), fold_of(attempts.task_id, 5)
    assert set(outer.tolist()) == set(range(5))
    assert 0.1 < (outer == inner).mean() < 0.3
