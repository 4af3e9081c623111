"""An ensemble's mean as one network in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK
from seqroute_ray.training.cql import Heads
from seqroute_ray.training.ensemble import Ensemble, make_ensemble, mean_network

NUM_CONTEXT = 9
WIDTHS = st.lists(st.integers(1, 16), min_size=1, max_size=3)


def of_random_weights(num_models: int, size: int, hidden: list[int], risk_hidden: list[int]) -> Ensemble:
    parts = {"num_context": NUM_CONTEXT, "num_after": NUM_AFTER, "num_risk": NUM_RISK}
    shape = {"fcnet_hiddens": hidden, "risk_hidden": risk_hidden, "ensemble_size": size}
    ensemble = make_ensemble(NUM_CONTEXT + num_models * (1 + NUM_AFTER), num_models, {**parts, **shape})
    for parameter in ensemble.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return ensemble


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.integers(1, 4), st.integers(1, 4), WIDTHS, WIDTHS, st.integers(0, 2**32 - 1))
def test_the_mean_as_one_network_in_numpy_says_what_the_ensemble_says(
    num_models: int, size: int, hidden: list[int], risk_hidden: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    ensemble = of_random_weights(num_models, size, hidden, risk_hidden)
    state = torch.randn(20, NUM_CONTEXT + num_models * (1 + NUM_AFTER))
    with torch.no_grad():
        heads = Heads.of(ensemble(state))
    network = mean_network(ensemble)
    assert [len(bias) for _, bias in network.quality.layers] == [*(size * width for width in hidden), 1]
    ours = network.values(state.numpy())
    np.testing.assert_allclose(ours.quality, heads.quality.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.q_values(5.0), heads.q_values(5.0).numpy(), rtol=1e-4, atol=1e-4)


def test_states_without_parts_have_no_form_in_numpy() -> None:
    with pytest.raises(TypeError, match="only an ActionValueNetwork becomes a policy, got PlainNetwork"):
        mean_network(make_ensemble(4, 2, {"ensemble_size": 2}))
