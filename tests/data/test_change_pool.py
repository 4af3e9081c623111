"""Policies on disk whose pool changes: the old folder stays, the new one loads, mistakes name the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.change_pool import (
    AddModelConfig,
    RemoveModelConfig,
    add_model_to_policy,
    remove_model_from_policy,
)
from tests.support import make_artefact, make_sessions

NEW = "gpt-4o-mini-2024-07-18"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    make_artefact(2, configs={"mean_cost_usd": [0.001, 0.002], "estimator": {}}).save(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_model_joins_and_another_leaves(policy: Path, tmp_path: Path) -> None:
    before = PolicyArtefact.load(policy)
    added = add_model_to_policy(AddModelConfig(policy=policy, model=NEW, out=tmp_path / "three"))
    assert PolicyArtefact.load(tmp_path / "three").catalog.names == (*before.catalog.names, NEW)
    remove_model_from_policy(RemoveModelConfig(policy=tmp_path / "three", model="model-0", out=tmp_path / "two"))
    assert PolicyArtefact.load(tmp_path / "two").catalog.names == ("model-1", NEW)
    assert PolicyArtefact.load(policy).version == before.version != added.version


def test_observed_turns_change_what_the_policy_expects_of_the_newcomer(policy: Path, tmp_path: Path) -> None:
    old = PolicyArtefact.load(policy).catalog
    spec = load_outcomes().catalog.models[load_outcomes().catalog.action(NEW)]
    sessions = make_sessions([4] * 20, num_models=3)
    always = replace(sessions, catalog=Catalog((*old.models, spec)), action=np.full(80, 2))
    write_sessions(always, tmp_path / "turns.parquet")
    config = AddModelConfig(policy=policy, model=NEW, out=tmp_path / "seen", sessions=tmp_path / "turns.parquet")
    seen = add_model_to_policy(config)
    unseen = add_model_to_policy(replace(config, sessions=None, out=tmp_path / "unseen"))
    assert not np.allclose(seen.estimator.quality_weights[:, 2], unseen.estimator.quality_weights[:, 2], atol=0.1)


def test_mistakes_name_the_file_and_the_way_out(policy: Path, tmp_path: Path) -> None:
    write_sessions(make_sessions([4]), tmp_path / "others.parquet")
    config = AddModelConfig(policy=policy, model=NEW, out=tmp_path / "x", sessions=tmp_path / "others.parquet")
    with pytest.raises(DataError, match=r"others.parquet: no turn of model 'gpt-4o-mini.*leave --sessions out"):
        add_model_to_policy(config)
    write_sessions(replace(make_sessions([4]), embedder="another"), tmp_path / "others.parquet")
    with pytest.raises(DataError, match="embedded by 'another', the policy by 'wordllama'"):
        add_model_to_policy(config)
    with pytest.raises(ConfigError, match="out must be another folder than policy"):
        AddModelConfig(policy=policy, model=NEW, out=policy)
    assert not (tmp_path / "x").exists()
