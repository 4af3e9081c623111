"""The loss by hand."""

import math

import pytest
import torch

from seqroute_ray.training.cql import cql_loss, td_target


def test_the_conservative_term_is_logsumexp_minus_the_logged_action() -> None:
    q, action = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    loss = cql_loss(q, action, torch.tensor([1.0]), td_weight=1.0, cql_alpha=0.5)
    expected = math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 1.0
    assert float(loss.conservative) == pytest.approx(expected)
    assert float(loss.td) == 0.0
    assert float(loss.total) == pytest.approx(0.5 * expected)


def test_cloning_ignores_rewards() -> None:
    q, action = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    totals = {float(cql_loss(q, action, torch.tensor([y]), 0.0, 1.0).total) for y in (0.0, 5.0)}
    assert len(totals) == 1


def test_the_target_is_double_q_over_allowed_actions_and_ends_at_the_end() -> None:
    target = td_target(
        reward=torch.tensor([1.0, 1.0, 1.0]),
        terminated=torch.tensor([False, False, True]),
        next_q=torch.tensor([[1.0, 9.0], [1.0, 9.0], [1.0, 9.0]]),
        next_q_target=torch.tensor([[2.0, 4.0], [2.0, 4.0], [2.0, 4.0]]),
        next_allowed=torch.tensor([[True, True], [True, False], [True, True]]),
        gamma=0.5,
    )
    assert target.tolist() == [3.0, 2.0, 1.0]
