"""What a log says of another policy: the cut is replay's, weights are right by hand, unfit propensities are refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import FixedModel
from seqroute_ray.evaluation.ope_log import Exploring, check_propensities, follow, target_probabilities, weigh
from seqroute_ray.evaluation.replay import ReplayData, Turns, replay
from tests.evaluation.ope_support import acting, cut
from tests.support import make_estimator, make_layout, make_replay_data, make_sessions, random_sessions

NOTHING_KNOWN = -1


@dataclass(frozen=True)
class AsLogged:
    """Takes the model of the log."""

    def act(self, data: ReplayData, turns: Turns) -> IntArray:
        return data.sessions.action[turns.row]


@settings(deadline=None)
@given(random_sessions(), st.integers(0, 25_000_000))
def test_a_logged_path_under_a_budget_is_its_own_replay(sessions: Sessions, budget_nusd: int) -> None:
    budgets = budget_nusd + 1_000_000 * np.arange(sessions.num_sessions)
    paths, replayed = follow(sessions, budgets), replay(AsLogged(), make_replay_data(sessions), budgets)
    np.testing.assert_array_equal(paths.served, paths.decided & ~replayed.bankrupting)
    np.testing.assert_array_equal(paths.bankrupt, replayed.bankrupt)
    np.testing.assert_array_equal(paths.reward, replayed.quality)
    np.testing.assert_array_equal(paths.remaining_nusd[paths.decided], replayed.remaining_nusd[paths.decided])


def test_weights_worked_by_hand() -> None:
    sessions = acting(make_sessions([3, 1]), np.array([0, 1, 0, 1]), np.array([0.5, 0.25, 0.8, 0.5]))
    sessions = replace(sessions, cost_nusd=np.array([1, 5, 1, 1]))
    target = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    rich = weigh(cut(sessions, 100), target)
    assert rich.upto.tolist() == pytest.approx([0.5, 1.0, 1.25, 0.0])
    assert rich.before.tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0])
    poor = weigh(cut(sessions, 3), target)  # the second turn bankrupts: nobody decides the third
    assert poor.upto.tolist() == pytest.approx([0.5, 1.0, 1.0, 0.0])


def test_a_turn_of_propensity_1_leaves_the_target_no_choice_where_asked() -> None:
    sessions = acting(make_sessions([2]), np.array([1, 0]), np.array([1.0, 0.5]))
    target = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert weigh(cut(sessions, 10**9), target).upto.tolist() == [0.0, 0.0]
    forced = weigh(cut(sessions, 10**9), target, follows_forced=True)
    assert forced.upto.tolist() == [1.0, 2.0]
    assert forced.target.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_unjudged_turns_are_made_up_for_by_the_judged_ones_of_their_model() -> None:
    sessions = acting(make_sessions([5]), np.array([0, 0, 1, 0, 0]), 0.5)
    quality = np.array([0.5, np.nan, 1.0, np.nan, 1.0], dtype=np.float32)
    sessions = replace(sessions, quality=quality, cost_nusd=np.array([1, 1, 1, 1, 9]))
    weights = weigh(cut(sessions, 10), np.full((5, 2), 0.5))
    # Of model 0 two of four turns were judged; the last turn bankrupts, so its reward is sure.
    assert weights.judging.tolist() == [2.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("propensity", "words"),
    [
        ([0.5, np.nan, 0.5], "1 of 3 turns have no propensity"),
        ([0.5, 0.0, 0.5], r"propensity must be in \(0, 1\], got 0.0 \(1 of 3 turns\)"),
        ([0.5, 1.5, 0.5], r"propensity must be in \(0, 1\], got 1.5"),
        ([1.0, 1.0, 1.0], "propensity is 1 in all 3 turns"),
    ],
)
def test_propensities_that_tell_nothing_are_refused(propensity: list[float], words: str) -> None:
    sessions = replace(make_sessions([1, 2]), propensity=np.array(propensity, dtype=np.float32))
    with pytest.raises(DataError, match=words):
        check_propensities(sessions)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (np.full((2, 2), 0.5), r"must have shape \(3, 2\), turns by models, got \(2, 2\)"),
        (np.full((3, 2), 0.6), r"add up to 1, got \[0.6, 0.6\] \(3 of 3 turns\)"),
        (np.array([[0.5, 0.5], [1.5, -0.5], [0.5, 0.5]]), r"must be >= 0 .* \(1 of 3 turns\)"),
        (np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]]), r"\(1 of 3 turns\)"),
    ],
)
def test_a_target_that_holds_no_probabilities_is_refused(target: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        weigh(cut(make_sessions([1, 2]), 10**9), target)


def test_a_target_is_asked_in_the_logged_states_of_sessions_without_outcomes() -> None:
    whole = make_sessions([4, 2, 3], num_models=3)
    sessions = replace(whole, outcome_cost_nusd=np.full_like(whole.outcome_cost_nusd, NOTHING_KNOWN))
    data = ReplayData.of_log(sessions, make_estimator(3), make_layout(3))
    paths = cut(sessions, 4_000_000)
    assert not paths.decided.all()

    @dataclass(frozen=True)
    class Seen:
        """Whether it was asked where the log was."""

        def act(self, data: ReplayData, turns: Turns) -> IntArray:
            assert set(data.sessions.turn[turns.row].tolist()) <= {turns.turn}
            np.testing.assert_allclose(turns.remaining_usd, paths.remaining_nusd[turns.row] / 1e9)
            np.testing.assert_allclose(turns.budget_usd, 0.004)
            return turns.row % 3

    target = target_probabilities(Exploring(Seen()), data, paths)
    np.testing.assert_array_equal(target[paths.decided], np.eye(3)[np.arange(9) % 3][paths.decided])


def test_exploring_spreads_its_share_over_the_affordable_models() -> None:
    data = make_replay_data(make_sessions([2], num_models=3))
    cost_usd, high_usd = (values[0].copy() for values in (data.estimates.cost_usd, data.estimates.cost_high_usd))
    cheapest = int(cost_usd.argmin())
    money_usd = np.array([float(np.sort(np.delete(high_usd, cheapest))[0])])  # pays one of the others
    turns = Turns(np.array([0]), 0, money_usd, money_usd)
    chance = Exploring(FixedModel(cheapest), epsilon=0.4).probabilities(data, turns)[0]
    assert sorted(chance.tolist()) == pytest.approx([0.0, 0.2, 0.8])
    assert chance[cheapest] == pytest.approx(0.8)
