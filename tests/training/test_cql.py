"""The loss by hand."""

import math

import pytest
import torch

from seqroute_ray.training.cql import Heads, Targets, cql_loss, td_targets


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
