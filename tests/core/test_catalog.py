"""The pool: order is the action index, prices turn tokens into money, mistakes are refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import ConfigError, UnknownModelError
from tests.support import make_catalog

prices = st.floats(0, 1e6, allow_nan=False)
counts = st.none() | st.integers(1, 10**6)
models = st.builds(
    ModelSpec,
    name=st.text(min_size=1, max_size=8),
    usd_per_m_input=prices,
    usd_per_m_output=prices,
    family=st.text(max_size=4),
    size_b=st.none() | st.floats(0.1, 1e4),
    max_input_tokens=counts,
    max_output_tokens=counts,
)


def _with_aliases(pool: list[ModelSpec]) -> Catalog:
    """Names are at most 8 characters, so that an alias is never another model's name."""
    return Catalog(tuple(replace(model, aliases=(f"provider/{model.name}", model.name)) for model in pool))


catalogs = st.lists(models, min_size=1, max_size=5, unique_by=lambda model: model.name).map(_with_aliases)


@given(catalogs)
def test_a_catalog_survives_the_way_to_json_and_back(catalog: Catalog) -> None:
    again = Catalog.from_json(json.loads(json.dumps(catalog.to_json())))
    assert again == catalog
    assert again.fingerprint == catalog.fingerprint


@given(catalogs)
def test_the_position_of_a_model_is_its_action(catalog: Catalog) -> None:
    assert [catalog.action(name) for name in catalog.names] == list(range(len(catalog)))


@given(catalogs)
def test_an_alias_is_its_models_action_and_no_part_of_the_fingerprint(catalog: Catalog) -> None:
    assert [catalog.action(f"provider/{name}") for name in catalog.names] == list(range(len(catalog)))
    assert Catalog(tuple(replace(model, aliases=()) for model in catalog.models)).fingerprint == catalog.fingerprint


@given(catalogs, st.data())
def test_a_sub_pool_has_the_models_asked_for_in_that_order(catalog: Catalog, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(catalog.names), min_size=1, unique=True))
    pool = catalog.select(names)
    assert pool.names == tuple(names)
    assert all(pool.models[pool.action(name)] is catalog.models[catalog.action(name)] for name in names)


def test_costs_worked_by_hand() -> None:
    pool = Catalog(
        (
            ModelSpec(name="small", usd_per_m_input=0.5, usd_per_m_output=2.0),
            ModelSpec(name="free", usd_per_m_input=0, usd_per_m_output=0),
            ModelSpec(name="large", usd_per_m_input=3.0, usd_per_m_output=15.0),
        )
    )
    assert float(pool.cost_usd(0, 1_000_000, 0)) == pytest.approx(0.5)
    assert float(pool.cost_usd(2, 1000, 200)) == pytest.approx(0.003 + 0.003)
    every = pool.cost_usd(np.arange(3), np.array([[1000], [2000]]), np.array([[100], [0]]))
    np.testing.assert_allclose(every, [[0.0007, 0.0, 0.0045], [0.001, 0.0, 0.006]])


def test_the_fingerprint_changes_with_name_order_and_price() -> None:
    pool = make_catalog(2)
    first, second = pool.models
    others = [
        (second, first),
        (first,),
        (replace(first, name="other"), second),
        (replace(first, usd_per_m_input=1.5), second),
        (first, replace(second, usd_per_m_output=0.0)),
    ]
    fingerprints = {Catalog(models).fingerprint for models in others}
    assert len(fingerprints) == len(others)
    assert pool.fingerprint not in fingerprints
    assert pool.fingerprint == make_catalog(2).fingerprint


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    pool = make_catalog(2)
    for ask in (lambda: pool.action("gpt-9"), lambda: pool.select(["model-0", "gpt-9"])):
        with pytest.raises(UnknownModelError, match="model 'gpt-9' is not in the catalog; known: model-0, model-1"):
            ask()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "a model needs a name"),
        ({"usd_per_m_input": -0.1}, "model 'm': usd_per_m_input must be a number >= 0 .* got -0.1"),
        ({"usd_per_m_output": float("nan")}, "usd_per_m_output must be a number >= 0 .* got nan"),
        ({"usd_per_m_output": float("inf")}, "usd_per_m_output must be a number >= 0 .* got inf"),
        ({"usd_per_m_input": "1.0"}, "usd_per_m_input must be a number >= 0 .* got '1.0'"),
        ({"usd_per_m_input": None}, "usd_per_m_input must be a number >= 0 .* got None"),
        ({"aliases": "gpt"}, "model 'm': aliases must be a list of names, got 'gpt'"),
        ({"aliases": [1]}, r"model 'm': aliases must be a list of names, got \[1\]"),
        ({"aliases": [""]}, r"model 'm': aliases must be a list of names, got \[''\]"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelSpec(**{"name": "m", "usd_per_m_input": 1.0, "usd_per_m_output": 1.0, **fields})


def named(name: str, aliases: list[str]) -> list[dict[str, Any]]:
    return [{"name": name, "usd_per_m_input": 1.0, "usd_per_m_output": 1.0, "aliases": aliases}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one model"),
        ([{"name": "m", "usd_per_m_input": 1.0}], "wrong fields: .*usd_per_m_output"),
        ([{"name": "m", "usd_per_m_input": 1.0, "usd_per_m_output": 1.0, "price": 1}], "wrong fields: .*price"),
        ([{"name": "m", "usd_per_m_input": 1.0, "usd_per_m_output": 1.0}] * 2, r"repeated: \['m'\]"),
        (named("a", ["x"]) + named("b", ["x"]), "an alias may be of one model, got 'x' for 'a' and 'b'"),
        (named("a", ["b"]) + named("b", []), "an alias may be of one model, got 'b' for 'a' and 'b'"),
    ],
)
def test_a_catalog_that_cannot_be_meant_is_refused_in_one_line(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Catalog.from_json(rows)
    assert "\n" not in str(caught.value)
