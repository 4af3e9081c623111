"""The policy: Q-values and the lambda rule by hand; the artefact folder round trip and its refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ArtefactError
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout
from seqroute_ray.core.policy import (
    MANIFEST,
    WEIGHTS,
    Perceptron,
    PolicyArtefact,
    QNetwork,
    RiskPrices,
    Values,
    lambda_greedy,
)
from seqroute_ray.core.queries import UNKNOWN_TYPE, QueryFeatures
from tests.support import make_artefact, make_catalog, make_layout, make_network, make_risk


def states(num_models: int, seed: int = 0) -> np.ndarray:
    shape = (7, make_layout(num_models).state_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(deadline=None, max_examples=20)  # the disk may be busy
@given(num_models=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_an_artefact_survives_the_way_to_disk_and_back_to_the_last_bit(
    num_models: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("policy") / "sub"
    ours = make_artefact(num_models, seed)
    if seed % 2:
        ours = replace(ours, estimator=replace(ours.estimator, risk=make_risk(num_models, seed=seed)))
    ours.save(folder)
    theirs = PolicyArtefact.load(folder, expect=make_catalog(num_models))
    assert (theirs.estimator.risk is None) == (ours.estimator.risk is None)
    for name in ("catalog", "embedder", "layout", "risk", "configs", "data_fingerprint", "version"):
        assert getattr(theirs, name) == getattr(ours, name), name
    for name, array in ours.estimator.arrays().items():
        np.testing.assert_array_equal(theirs.estimator.arrays()[name], array, err_msg=name, strict=True)
    for name, array in vars(ours.network.values(states(num_models))).items():
        np.testing.assert_array_equal(getattr(theirs.network.values(states(num_models)), name), array, strict=True)
    assert json.loads((folder / MANIFEST).read_text())["version"] == ours.version


def test_the_weight_of_the_estimates_survives_the_way_to_disk_and_back(tmp_path: Path) -> None:
    ours = make_artefact()
    ours = replace(ours, network=replace(ours.network, estimate_weight=1 / 3))
    ours.save(tmp_path)
    theirs = PolicyArtefact.load(tmp_path)
    assert theirs.version == ours.version
    assert theirs.network.estimate_weight == pytest.approx(1 / 3, rel=1e-7)
    np.testing.assert_array_equal(theirs.network.values(states(2)).quality, ours.network.values(states(2)).quality)


def test_saving_over_an_artefact_leaves_the_new_one(tmp_path: Path) -> None:
    make_artefact(3, seed=1).save(tmp_path)
    new = make_artefact(2, seed=2)
    new.save(tmp_path)
    assert PolicyArtefact.load(tmp_path).version == new.version
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, WEIGHTS]


def test_the_version_changes_with_weights_estimator_risk_prices_and_catalog() -> None:
    ours = make_artefact()
    others = [
        replace(ours, network=make_network(ours.layout, seed=1)),
        replace(ours, network=replace(ours.network, estimate_weight=0.5)),
        replace(ours, estimator=make_artefact(seed=1).estimator),
        replace(ours, risk=RiskPrices((1.0,), (2.0,))),
        replace(ours, catalog=Catalog(ours.catalog.models[::-1])),
    ]
    assert len({ours.version, *(artefact.version for artefact in others)}) == 6
    assert replace(ours, configs={}).version == ours.version


def edit_manifest(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | fields))

    return edit


def edit_a_price(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["catalog"][0]["usd_per_m_output"] = 99.0
    (folder / MANIFEST).write_text(json.dumps(manifest))


def mix_with_a_wider_pool(folder: Path) -> None:
    make_artefact(3).save(folder / "other")
    (folder / "other" / WEIGHTS).replace(folder / WEIGHTS)


def edit_layout(**fields: Any) -> Callable[[Path], None]:
    return edit_manifest(layout=make_layout(2).to_json() | fields)


def mix_with_one_type(folder: Path) -> None:
    estimator = make_artefact().estimator
    one = QueryFeatures(np.array([UNKNOWN_TYPE]), estimator.features.type_weights[:, :1], estimator.features.log_tokens)
    make_artefact(estimator=replace(estimator, features=one)).save(folder)


def write_a_list(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def mix_with_a_twin(folder: Path) -> None:
    make_artefact(seed=9).save(folder / "other")
    (folder / "other" / WEIGHTS).replace(folder / WEIGHTS)


def cut_weights(num_bytes: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:num_bytes])

    return cut


def without(missing: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        with np.load(folder / WEIGHTS) as archive:
            arrays = {name: archive[name] for name in archive.files if name != missing}
        np.savez(folder / WEIGHTS, **arrays)

    return drop


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "no manifest.json here; .* `seqroute train`"),
    "manifest is no JSON": (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json: not JSON"),  # type: ignore[dict-item]
    "newer format": (edit_manifest(format_version=5), "artefact format 5, this version reads 4; train again"),
    "no format": (edit_manifest(format_version=None), "artefact format None, this version reads 4"),
    "older format": (edit_manifest(format_version=3), "artefact format 3, this version reads 4; train again"),
    "edited price": (edit_a_price, "the catalog was edited after training"),
    "weights of a wider pool": (mix_with_a_wider_pool, "an estimator of 3 models in a pool of 2"),
    "layout of another pool": (edit_manifest(layout=make_layout(3).to_json()), "for 3 models, expected .* -> 1 for 2"),
    "layout of another summary": (
        edit_layout(summary_width=4),
        "the network's heads map .*14, 1.*15, 1.*, expected .*15.*16.* -> 1",
    ),
    "layout without a summary": (edit_layout(summary_width=None), "the artefact is damaged"),
    "estimator of other types": (mix_with_one_type, "summarises a query in 2 numbers, the layout has 3"),
    "empty weights": (cut_weights(0), "the artefact is damaged"),
    "no fingerprint": (edit_manifest(catalog_fingerprint=None), "the catalog was edited after training"),
    "a list": (write_a_list, "must hold a JSON object, got list"),
    "another's weights": (mix_with_a_twin, "weights.npz is not the one that manifest.json was written for"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "the artefact is damaged .* train it again"),
    "half of the weights": (cut_weights(700), "the artefact is damaged"),
    "weights without their end": (cut_weights(-30), "the artefact is damaged"),
    "a missing array": (without("network.quality.1.bias"), "the artefact is damaged .*at least one hidden layer"),
    "no weight of the estimates": (without("network.estimate_weight"), "the artefact is damaged .*estimate_weight"),
    "a missing first layer": (without("network.bankruptcy.0.bias"), "the artefact is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    harm, words = DAMAGES[damage]
    make_artefact().save(tmp_path)
    PolicyArtefact.load(tmp_path)
    harm(tmp_path)
    with pytest.raises(ArtefactError, match=words) as caught:
        PolicyArtefact.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "expect",
    [
        make_catalog(3),
        Catalog(make_catalog(2).models[::-1]),
        Catalog(tuple(replace(model, usd_per_m_input=9.0) for model in make_catalog(2).models)),
    ],
    ids=["another model", "another order", "another price"],
)
def test_another_pool_than_the_expected_one_is_refused(expect: Catalog, tmp_path: Path) -> None:
    make_artefact().save(tmp_path)
    with pytest.raises(ArtefactError, match=r"trained for the catalog model-0, model-1, .* train again") as caught:
        PolicyArtefact.load(tmp_path, expect=expect)
    assert "\n" not in str(caught.value)


def test_an_artefact_decides_without_torch_and_ray(tmp_path: Path) -> None:
    artefact = make_artefact()
    artefact.save(tmp_path / "policy")
    np.save(tmp_path / "states.npy", states(2))
    code = f"""
import sys
import numpy as np
from pathlib import Path
from seqroute_ray.core.policy import PolicyArtefact
artefact = PolicyArtefact.load(Path({str(tmp_path / "policy")!r}))
np.save({str(tmp_path / "q.npy")!r}, artefact.network.values(np.load({str(tmp_path / "states.npy")!r})).q_values(2.0))
print(artefact.version, [name for name in ("torch", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{artefact.version} []"
    np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), artefact.network.values(states(2)).q_values(2.0))


def test_the_two_parts_of_q_worked_by_hand() -> None:
    # Context c, and for each action its estimate e and one number z of what it leaves.
    hidden = (np.array([[1.0, -1.0], [2.0, 0.0]], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32))
    last = (np.array([[1.0], [10.0]], dtype=np.float32), np.array([0.5], dtype=np.float32))
    risk = Perceptron([hidden, (np.array([[2.0], [0.0]], dtype=np.float32), np.array([-6.0], dtype=np.float32))])
    state = np.array([[1.0, 0.25, 0.75, 1.0, -2.0]], dtype=np.float32)
    # Hidden units max(c + 2 z, 0) and max(1 - c, 0): (3, 0) and (0, 0); logits of bankruptcy 2 * 3 - 6 and -6.
    values = QNetwork(Perceptron([hidden, last]), risk, num_context=1).values(state)
    assert values.quality.tolist() == [[0.25 + 3.5, 0.75 + 0.5]]
    np.testing.assert_allclose(values.bankruptcy, [[0.5, 1 / (1 + np.exp(6))]], rtol=1e-6)
    middle = (np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32), np.array([0.25, 0.0], dtype=np.float32))
    deeper = QNetwork(Perceptron([hidden, middle, last]), risk, num_context=1).values(
        state
    )  # units (0.25, 3) and (0.25, 0)
    assert deeper.quality.tolist() == [[0.25 + 30.75, 0.75 + 0.75]]
    doubled = QNetwork(Perceptron([hidden, last]), risk, num_context=1, estimate_weight=2.0).values(state)
    assert doubled.quality.tolist() == [[0.5 + 3.5, 1.5 + 0.5]]
    np.testing.assert_array_equal(doubled.bankruptcy, values.bankruptcy)


def test_the_last_entries_of_an_action_are_for_the_bankruptcy_alone() -> None:
    layout = make_layout(2)
    context, estimate, after = parts_of(states(2), layout)
    runaway = np.concatenate([after[..., :-NUM_RISK], after[..., -NUM_RISK:] + 1], axis=-1)
    before, risky = (make_network(layout).values(state_of(context, estimate, own)) for own in (after, runaway))
    np.testing.assert_array_equal(risky.quality, before.quality)
    assert (risky.bankruptcy != before.bankruptcy).any()


def parts_of(state: np.ndarray, layout: StateLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context [N, C], estimates [N, K] and what each model would leave [N, K, NUM_AFTER]."""
    context, estimate, after = np.split(state, [layout.num_context, layout.num_context + layout.num_models], axis=1)
    return context, estimate, after.reshape(len(state), layout.num_models, NUM_AFTER)


def state_of(context: np.ndarray, estimate: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Inverse of parts_of."""
    return np.concatenate([context, estimate, after.reshape(len(context), -1)], axis=1)


@settings(deadline=None)  # the machine may be busy
@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_models_in_another_order_have_their_values_in_that_order(order: list[int], seed: int) -> None:
    layout = make_layout(4)
    network = make_network(layout, seed)
    context, estimate, after = parts_of(states(4, seed), layout)
    ours = network.values(state_of(context, estimate, after))
    theirs = network.values(state_of(context, estimate[:, order], after[:, order]))
    np.testing.assert_allclose(theirs.quality, ours.quality[:, order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theirs.bankruptcy, ours.bankruptcy[:, order], rtol=1e-4, atol=1e-6)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_more_models_in_the_pool_do_not_change_the_values_of_the_others(few: int, more: int, seed: int) -> None:
    num_models = few + more
    layout = make_layout(num_models)
    network = make_network(layout, seed)
    context, estimate, after = parts_of(states(num_models, seed), layout)
    whole = network.values(state_of(context, estimate, after))
    part = network.values(state_of(context, estimate[:, :few], after[:, :few]))
    assert part.quality.shape == (7, few)
    np.testing.assert_allclose(part.quality, whole.quality[:, :few], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part.bankruptcy, whole.bankruptcy[:, :few], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_a_better_estimate_is_so_much_more_value_times_its_weight(weight: float) -> None:
    layout = make_layout(2)
    context, estimate, after = parts_of(states(2), layout)
    network = replace(make_network(layout), estimate_weight=weight)
    gain = np.array([0.0, 0.5], dtype=np.float32)
    before, better = (network.values(state_of(context, quality, after)) for quality in (estimate, estimate + gain))
    np.testing.assert_allclose(better.quality, before.quality + weight * gain, atol=2e-6)
    np.testing.assert_array_equal(better.bankruptcy, before.bankruptcy)


def test_a_bankruptcy_costs_the_penalty_times_its_chance() -> None:
    values = Values(np.array([[3.0, 2.0]], dtype=np.float32), np.array([[0.5, 0.0]], dtype=np.float32))
    assert [values.q_values(penalty).tolist() for penalty in (0.0, 2.0, 4.0)] == [[[3, 2]], [[2, 2]], [[1, 2]]]
    thrice = Values(values.quality.repeat(3, axis=0), values.bankruptcy.repeat(3, axis=0))
    assert thrice.q_values(np.array([0.0, 2.0, 4.0])).tolist() == [[3, 2], [2, 2], [1, 2]]  # a penalty a state


def test_risk_prices_are_interpolated_in_logarithms_and_constant_beyond_their_ends() -> None:
    risk = RiskPrices(budgets=(0.1, 1.0), penalties=(1.0, 4.0))
    assert [risk.penalty(budget) for budget in (0.0, 0.05, 0.1, 0.1**0.5, 1.0, 50.0)] == pytest.approx(
        [1, 1, 1, 2, 4, 4]
    )
    assert risk.penalty(np.array([0.0, 0.1**0.5, 50.0])).tolist() == pytest.approx([1, 2, 4])
    artefact = make_artefact(risk=risk)
    assert artefact.penalty(0.1**0.5 * artefact.layout.reference_cost_usd) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("budgets", "penalties"),
    [((), ()), ((0.1,), (1.0, 2.0)), ((1.0, 0.1), (1.0, 2.0)), ((0.1, 0.1), (1.0, 2.0)), ((1.0,), (0.0,))],
)
def test_risk_prices_need_one_penalty_for_each_rising_budget(
    budgets: tuple[float, ...], penalties: tuple[float, ...]
) -> None:
    with pytest.raises(ArtefactError, match="one penalty > 0 for each budget, rising"):
        RiskPrices(budgets, penalties)


def test_the_lambda_rule_worked_by_hand() -> None:
    q_values = np.array([[1.0, 2.0, 4.0]] * 5)
    cost_usd = np.array([[0.0, 0.1, 1.0]] * 5)
    allowed = np.array([[True, True, True]] * 3 + [[True, True, False], [False, False, True]])
    lambdas = np.array([0.0, 3.0, 20.0, 0.0, 20.0])  # scores of row 1: 1, 1.7, 1; of row 2: 1, 0, -16
    assert lambda_greedy(q_values, cost_usd, allowed, lambdas).tolist() == [2, 1, 0, 1, 2]
    assert lambda_greedy(q_values, cost_usd, allowed, 0.0).tolist() == [2, 2, 2, 1, 2]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_growing_lambda_moves_down_in_cost_to_the_cheapest_allowed_model(num_models: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_values, cost_usd = rng.normal(size=(2, 5, num_models))
    cost_usd = np.exp(cost_usd)
    allowed = rng.random(cost_usd.shape) < 0.6
    allowed[np.arange(5), rng.integers(num_models, size=5)] = True
    rows, before = np.arange(5), np.full(5, np.inf)
    for lambda_per_usd in (0.0, *np.geomspace(1e-3, 1e9, 60)):
        action = lambda_greedy(q_values, cost_usd, allowed, lambda_per_usd)
        assert allowed[rows, action].all()
        assert (cost_usd[rows, action] <= before).all()
        before = cost_usd[rows, action]
    np.testing.assert_array_equal(before, np.where(allowed, cost_usd, np.inf).min(axis=1))
