"""Models that join and leave a trained policy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import ConfigError, UnknownModelError
from seqroute_ray.core.mdp import TurnFeatures, encode_state
from seqroute_ray.core.policy import PolicyArtefact, Values
from seqroute_ray.core.pool_change import add_model, metadata, remove_model
from seqroute_ray.core.sessions import Sessions
from tests.support import SUMMARY_WIDTH, make_artefact, make_queries, make_risk, make_sessions

NEW = ModelSpec(name="new", usd_per_m_input=2.0, usd_per_m_output=3.0)
QUERIES = make_queries(50, seed=3)


def artefact(num_models: int = 3) -> PolicyArtefact:
    configs = {"mean_cost_usd": [0.001] * num_models, "estimator": {}}
    return make_artefact(num_models, seed=1, configs=configs)


def values(policy: PolicyArtefact) -> Values:
    """Of the same queries, with the same history and money, whatever the pool."""
    estimates = policy.estimator.predict(QUERIES, policy.catalog)
    turns = TurnFeatures(estimates, np.zeros((len(QUERIES), SUMMARY_WIDTH), dtype=np.float32))
    money_usd = np.full(len(QUERIES), policy.layout.reference_cost_usd)
    return policy.network.values(encode_state(policy.layout, turns, money_usd, np.zeros(len(QUERIES), dtype=int)))


def observed(num_turns: int, quality: float) -> Sessions:
    """Turns that the new model answered, all with one quality."""
    base = make_sessions([num_turns], num_models=4)
    catalog = Catalog((*artefact().catalog.models, NEW))
    action = np.full(num_turns, 3)
    known = np.full(num_turns, quality, dtype=np.float32)
    outcome_quality = np.full((num_turns, 4), np.nan, dtype=np.float32)
    outcome_cost_nusd = np.full((num_turns, 4), -1)
    return replace(
        base,
        catalog=catalog,
        action=action,
        quality=known,
        outcome_quality=outcome_quality,
        outcome_cost_nusd=outcome_cost_nusd,
    )


def test_a_model_that_joins_leaves_the_others_values_as_they_were() -> None:
    before, after = values(artefact()), values(add_model(artefact(), NEW, None))
    np.testing.assert_allclose(after.quality[:, :3], before.quality, rtol=1e-5)
    np.testing.assert_allclose(after.bankruptcy[:, :3], before.bankruptcy, rtol=1e-5)
    assert after.quality.shape == (len(QUERIES), 4)


def test_a_plan_over_the_old_pool_is_dropped() -> None:
    base = artefact()
    planned = replace(base, estimator=replace(base.estimator, risk=make_risk(3)))
    for changed in (add_model(planned, NEW, None), remove_model(planned, "model-1")):
        assert changed.estimator.risk is None


def test_a_model_that_leaves_takes_its_column_only() -> None:
    before, after = values(artefact()), values(remove_model(artefact(), "model-1"))
    np.testing.assert_allclose(after.quality, before.quality[:, [0, 2]], rtol=1e-5)


def test_adding_and_removing_gives_the_same_values_again() -> None:
    there_and_back = remove_model(add_model(artefact(), NEW, None), "new")
    np.testing.assert_allclose(values(there_and_back).quality, values(artefact()).quality, rtol=1e-5)


def test_without_observations_the_estimates_lie_among_those_of_the_known_models() -> None:
    policy = artefact()
    middle = replace(policy.catalog.models[1], name="new")  # the middle of three prices
    changed = add_model(policy, middle, None)
    quality = changed.estimator.predict(QUERIES, changed.catalog).quality
    assert (quality[:, 3] >= quality[:, :3].min(axis=1)).mean() > 0.9
    assert (quality[:, 3] <= quality[:, :3].max(axis=1)).mean() > 0.9


def test_with_one_known_model_the_new_one_is_taken_to_be_like_it() -> None:
    policy = artefact(1)
    changed = add_model(policy, NEW, None)
    np.testing.assert_allclose(
        changed.estimator.quality_weights[:, 1], changed.estimator.quality_weights[:, 0], rtol=1e-4
    )


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_observations_move_the_estimate_towards_them_the_more_there_are(quality: float) -> None:
    def gap(num_turns: int) -> float:
        sessions = observed(num_turns, quality) if num_turns else None
        policy = add_model(artefact(), NEW, sessions)
        return float(np.abs(policy.estimator.predict(QUERIES, policy.catalog).quality[:, 3] - quality).mean())

    assert gap(400) < gap(30) < gap(0)
    assert gap(400) < 0.1


def test_the_changed_policy_is_saved_and_loaded_and_says_what_changed(tmp_path: Path) -> None:
    changed = remove_model(add_model(artefact(), NEW, None), "model-0")
    changed.save(tmp_path)
    loaded = PolicyArtefact.load(tmp_path)
    assert loaded.catalog.names == ("model-1", "model-2", "new")
    assert loaded.configs["pool_changes"] == ["added new", "removed model-0"]
    assert len(loaded.configs["mean_cost_usd"]) == 3
    assert loaded.version == changed.version != artefact().version


def test_metadata_that_is_not_known_says_nothing() -> None:
    sized = ModelSpec(name="a", usd_per_m_input=1.0, usd_per_m_output=1.0, size_b=8.0, family="x")
    unsized = ModelSpec(name="b", usd_per_m_input=1.0, usd_per_m_output=1.0)
    table = metadata(Catalog((sized, unsized)))
    assert table.tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(ConfigError, match="in the policy's pool already"):
        add_model(artefact(), artefact().catalog.models[0], None)
    with pytest.raises(UnknownModelError, match="nobody"):
        remove_model(artefact(), "nobody")
    with pytest.raises(ConfigError, match="at least one"):
        remove_model(artefact(1), "model-0")
    unjudged = replace(observed(5, 1.0), quality=np.full(5, np.nan, dtype=np.float32))
    with pytest.raises(ConfigError, match="no judged turn"):
        add_model(artefact(), NEW, unjudged)
