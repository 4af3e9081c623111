"""All policies of a report: what they answer, what they are called, and the mixtures on the hull."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import chain

import numpy as np
import pytest

from seqroute_ray.core.fitting import EstimatorConfig
from seqroute_ray.evaluation.baselines import StaticMixture
from seqroute_ray.evaluation.families import (
    CLONING,
    CQL,
    CQL_ANY_RISK,
    SHARES,
    Family,
    fitted_families,
    learned_families,
    simple_families,
    static_mixtures,
)
from seqroute_ray.evaluation.replay import Turns
from tests.support import MEAN_COST_USD, make_artefact, make_catalog, make_replay_data, make_sessions

NUM_MODELS = 3
NAMES = (
    *(CQL, CQL_ANY_RISK, CLONING, "only model-0", "only model-1", "only model-2", "random", "budget heuristic"),
    *("static mixture", "first large", "threshold router", "boundary-guided", "greedy on estimates", "myopic"),
    *("pacing", "dynamic program on types", "dynamic program"),
)


@cache
def families() -> dict[str, Family]:
    """Of random weights and outcomes."""
    artefact = make_artefact(NUM_MODELS, configs={"estimator": asdict(EstimatorConfig())})
    fit = make_sessions([1, 2, 3, 4] * 6, NUM_MODELS)
    every = [
        *learned_families(artefact, make_artefact(NUM_MODELS, seed=1), (0.0, 50.0)),
        *simple_families(make_catalog(NUM_MODELS).names, np.arange(1, NUM_MODELS + 1) * MEAN_COST_USD, seed=0),
        *fitted_families(fit, artefact),
    ]
    assert len({family.name for family in every}) == len(every)
    return {family.name: family for family in every}


def test_each_family_has_a_name_of_its_own() -> None:
    assert tuple(families()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_family_has_settings_and_each_a_knob_of_its_own(name: str) -> None:
    knobs = [setting.knob for setting in families()[name].settings]
    assert len(set(knobs)) == len(knobs) > 0
    assert all(knobs) == (len(knobs) > 1)  # only a policy without a knob leaves it empty


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_family_chooses_models_of_the_pool_at_any_turn_and_money(name: str) -> None:
    data = make_replay_data(make_sessions([12] * 5, NUM_MODELS, seed=3), seed=3)
    remaining_usd = np.array([0.0, 1e-9, 0.003, 0.02, 1e6])
    for turn in (0, 1, 11):
        turns = Turns(data.sessions.offsets[:-1] + turn, turn, remaining_usd, np.maximum(remaining_usd, 0.01))
        for setting in families()[name].settings:
            action = setting.policy.act(data, turns)
            assert action.shape == (5,)
            assert np.issubdtype(action.dtype, np.integer)
            assert ((action >= 0) & (action < NUM_MODELS)).all(), setting.knob


def test_without_a_cloned_policy_its_family_is_left_out() -> None:
    assert [family.name for family in learned_families(make_artefact(), None, (0.0,))] == [CQL, CQL_ANY_RISK]


def mixtures(mean_cost_usd: Sequence[float], mean_quality: Sequence[float]) -> list[tuple[int, int, float]]:
    """The two models and the share of each mixture."""
    settings = static_mixtures(np.array(mean_cost_usd), np.array(mean_quality))
    coins = [setting.policy for setting in settings if isinstance(setting.policy, StaticMixture)]
    assert len(coins) == len(settings)
    return [(coin.cheap, coin.dear, coin.dear_share) for coin in coins]


def at_all_shares(*pairs: tuple[int, int]) -> list[tuple[int, int, float]]:
    return list(chain.from_iterable([(cheap, dear, share) for share in SHARES] for cheap, dear in pairs))


def test_static_mixtures_are_of_neighbours_on_the_hull() -> None:
    # In the order of cost models 1, 3, 0, 4, 2: 0 lies below the line from 3 to 4, and 2 is worse than 4.
    assert mixtures([3, 1, 5, 2, 4], [0.55, 0.2, 0.7, 0.5, 0.8]) == at_all_shares((1, 3), (3, 4))


def test_a_single_model_on_the_hull_is_mixed_with_itself() -> None:
    assert mixtures([2, 1], [0.4, 0.5]) == at_all_shares((1, 1))


def test_of_models_of_one_cost_the_better_is_on_the_hull() -> None:
    assert mixtures([0, 0, 2, 2], [0.3, 0.4, 0.9, 0.8]) == at_all_shares((1, 2))
