"""The loss by hand; the network against its twin in numpy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK
from seqroute_ray.training.cql import ActionValueNetwork, Heads, Targets, cql_loss, td_targets, to_numpy


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_the_conservative_term_is_logsumexp_minus_the_logged_action() -> None:
    heads = Heads(torch.tensor([[1.5, 2.5, 3.5]]), torch.zeros(1, 3))  # Q = quality - 1 * 0.5 = 1, 2, 3
    targets = Targets(torch.tensor([1.5]), torch.tensor([0.5]))
    loss = cql_loss(heads, torch.tensor([0]), targets, td_weight=1.0, cql_alpha=0.5, penalty=1.0)
    expected = math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 1.0
    assert float(loss.conservative) == pytest.approx(expected)
    assert float(loss.quality) == 0.0
    assert float(loss.bankruptcy) == pytest.approx(math.log(2))
    assert float(loss.total) == pytest.approx(math.log(2) + 0.5 * expected)


def test_cloning_ignores_rewards_and_bankruptcies() -> None:
    heads, action = Heads(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)), torch.tensor([1])
    totals = {
        float(cql_loss(heads, action, Targets(torch.tensor([y]), torch.tensor([b])), 0.0, 1.0, 5.0).total)
        for y, b in ((0.0, 0.0), (5.0, 1.0))
    }
    assert len(totals) == 1


def test_the_bankruptcy_head_learns_nothing_from_actions_that_are_not_allowed() -> None:
    chance = torch.zeros(3, 2, requires_grad=True)  # logits
    heads = Heads(torch.zeros(3, 2), chance)
    action, targets = torch.tensor([0, 1, 0]), Targets(torch.full((3,), 2.0), torch.tensor([0.5, 1.0, 1.0]))
    allowed = torch.tensor([[True, True], [True, False], [False, True]])
    loss = cql_loss(heads, action, targets, td_weight=1.0, cql_alpha=0.0, penalty=1.0, allowed=allowed)
    assert loss.bankruptcy.item() == pytest.approx(math.log(2) / 3)  # of the first row, over all rows
    assert loss.quality.item() == 4.0  # of all rows
    weighted = cql_loss(heads, action, targets, 1.0, 0.0, 1.0, allowed, weight=torch.tensor([1.5, 1.0, 0.5]))
    assert weighted.bankruptcy.item() == pytest.approx(1.5 * math.log(2) / 3)
    (slope,) = torch.autograd.grad(loss.total, chance)
    assert not slope[1:].any()


def test_targets_are_double_q_over_allowed_actions_and_end_at_the_end() -> None:
    online = Heads(torch.tensor([[1.0, 9.0]]).repeat(3, 1), torch.full((3, 2), logit(0.5)))
    target = Heads(torch.tensor([[2.0, 4.0]]).repeat(3, 1), torch.tensor([[logit(0.2), logit(0.4)]]).repeat(3, 1))
    targets = td_targets(
        quality=torch.tensor([1.0, 1.0, 0.0]),
        bankrupt=torch.tensor([0.0, 0.0, 1.0]),
        terminated=torch.tensor([False, False, True]),
        following=online,
        following_target=target,
        next_allowed=torch.tensor([[True, True], [True, False], [True, True]]),
        gamma=0.5,
        penalty=1.0,
    )
    assert targets.quality.tolist() == [3.0, 2.0, 0.0]
    assert targets.bankruptcy.tolist() == pytest.approx([0.2, 0.1, 1.0])


def test_the_penalty_turns_the_choice() -> None:
    heads = Heads(torch.tensor([[1.0, 2.0]]), torch.tensor([[logit(0.1), logit(0.5)]]))
    assert int(heads.q_values(1.0).argmax()) == 1
    assert int(heads.q_values(5.0).argmax()) == 0


NUM_CONTEXT = 9


def make(hidden: Sequence[int]) -> ActionValueNetwork:
    return ActionValueNetwork(NUM_CONTEXT, NUM_AFTER, NUM_RISK, hidden, hidden[:1])


def random_states(num_rows: int, num_models: int) -> torch.Tensor:
    return torch.randn(num_rows, NUM_CONTEXT + num_models * (1 + NUM_AFTER))


@settings(deadline=None, max_examples=30)  # the machine may be busy
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 64), min_size=1, max_size=3),
    st.floats(-3, 3),
    st.integers(0, 2**32 - 1),
)
def test_numpy_and_torch_agree_on_q_values(num_models: int, hidden: list[int], weight: float, seed: int) -> None:
    torch.manual_seed(seed)
    network, state = make(hidden), random_states(50, num_models)
    for head in (network.quality, network.bankruptcy):
        torch.nn.init.normal_(head.linears()[-1].weight)
    torch.nn.init.constant_(network.estimate_weight, weight)
    heads, ours = Heads.of(network(state)), to_numpy(network).values(state.numpy())
    np.testing.assert_allclose(ours.quality, heads.quality.detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.q_values(5.0), heads.q_values(5.0).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_a_new_network_ranks_by_the_estimates_alone() -> None:
    torch.manual_seed(0)
    network, state = make((64, 64)), random_states(50, 3)
    beyond = Heads.of(network(state)).quality - state[:, NUM_CONTEXT : NUM_CONTEXT + 3]
    torch.testing.assert_close(beyond, beyond[:1, :1].expand_as(beyond), atol=1e-5, rtol=0)


def test_bankruptcies_are_rare_to_a_new_network_whatever_the_state() -> None:
    state = torch.randn(50, NUM_CONTEXT + 3 * (1 + NUM_AFTER))
    chance = torch.sigmoid(Heads.of(make((8, 8))(state)).bankruptcy_logit)
    torch.testing.assert_close(chance, torch.full((50, 3), 0.0474), rtol=0, atol=1e-4)


def test_the_weight_of_the_estimates_is_1_at_first_and_is_learned_and_handed_on() -> None:
    torch.manual_seed(0)
    network, state = make((8,)), random_states(50, 3)
    assert to_numpy(network).estimate_weight == 1.0
    (slope,) = torch.autograd.grad(Heads.of(network(state)).quality.sum(), network.estimate_weight)
    torch.testing.assert_close(slope, state[:, NUM_CONTEXT : NUM_CONTEXT + 3].sum())
    torch.nn.init.constant_(network.estimate_weight, 0.25)
    assert to_numpy(network).estimate_weight == 0.25
