from dataclasses import replace

import numpy as np
import pytest

from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.behaviour import behaviour, is_focused
from seqroute_ray.evaluation.replay import UNSERVED, ReplayResult
from tests.support import make_sessions


def two_sessions() -> Sessions:
    """One of four turns of one type, one of two turns of two types; the weak model 0 solves the 1st and 5th turn."""
    sessions = make_sessions([4, 2])
    quality = np.array([[1, 1], [0, 1], [0, 1], [0, 0], [1, 1], [0, 1]], dtype=np.float32)
    return replace(sessions, outcome_quality=quality, source=np.array(["a", "a", "a", "a", "a", "b"]))


def result_of(action: list[int]) -> ReplayResult:
    """With a budget of 1 USD, of which each turn leaves a tenth less; the last unserved turn bankrupts."""
    taken = np.array(action)
    unserved = taken == UNSERVED
    return ReplayResult(
        action=taken,
        quality=np.where(unserved, 0.0, 0.5).astype(np.float32),
        cost_nusd=np.where(unserved, 0, 10**8),
        bankrupt=np.array([False, bool(unserved[5])]),
        bankrupting=np.zeros(6, dtype=np.bool_),
        remaining_nusd=np.array([10, 9, 8, 7, 10, 9]) * 10**8,
    )


def test_figures_worked_by_hand() -> None:
    figures = behaviour(result_of([0, 1, 1, 0, 1, UNSERVED]), two_sessions(), strong=1, weak=0, budget_usd=1.0)
    assert figures["switches_per_session"] == 1.0  # two in the first session; a new session and an end are none
    assert figures["strong_on_late_hard"] == 1.0  # of the third and fourth turn only the third is hard
    assert figures["strong_on_late_easy"] is None
    assert figures["model_share_by_source"] == {"a": {"model-0": 0.4, "model-1": 0.6}}
    assert figures["focused"] == {"quality": 0.5, "cost_usd_per_turn": pytest.approx(0.1), "bankruptcy_rate": 0.0}
    assert figures["mixed"] == {"quality": 0.25, "cost_usd_per_turn": pytest.approx(0.05), "bankruptcy_rate": 1.0}
    left, strong = np.array([1.0, 0.9, 0.8, 0.7, 1.0]), np.array([0, 1, 1, 0, 1])
    assert figures["strong_slope"] == pytest.approx(np.polyfit(left, strong, 1)[0])


def test_who_always_takes_one_model_neither_switches_nor_saves() -> None:
    figures = behaviour(result_of([1] * 6), two_sessions(), strong=1, weak=0, budget_usd=1.0)
    assert figures["switches_per_session"] == 0.0
    assert figures["strong_slope"] == pytest.approx(0.0)
    assert figures["strong_on_late_hard"] == 1.0


def test_a_session_is_focused_when_all_its_turns_are_of_one_type() -> None:
    assert is_focused(two_sessions()).tolist() == [True, False]
    assert is_focused(make_sessions([1, 1])).tolist() == [True, True]
