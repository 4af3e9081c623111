"""Transitions to batches: worked by hand, shuffled, shared out, and refused when they cannot be."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import Dataset
from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.mdp import affordable, encode_state
from seqroute_ray.core.money import to_usd
from seqroute_ray.training.reader import BANKRUPT, NEXT_ALLOWED, ShuffledRows
from seqroute_ray.training.relabeled import RelabeledData
from tests.support import make_estimator, make_layout, make_sessions, make_turns

REFERENCE_USD = 0.02


def make_dataset(lengths: tuple[int, ...] = (3, 4, 5), num_models: int = 3) -> Dataset:
    sessions = make_sessions(lengths, num_models)
    hbr = HbrConfig(paths="sampled", num_paths=4, num_budgets=4)
    return Dataset(
        catalog=sessions.catalog,
        embedder=sessions.embedder,
        layout=make_layout(num_models),
        estimator=make_estimator(num_models),
        difficulty=np.zeros(len(sessions.action), dtype=np.int8),
        turns=make_turns(len(sessions.action), num_models),
        transitions=relabel(sessions, REFERENCE_USD, hbr),
        manifest={},
    )


def test_a_transition_goes_from_its_turn_to_the_next_with_what_is_left() -> None:
    dataset = make_dataset()
    t, turns, layout = dataset.transitions, dataset.turns, dataset.layout
    going = np.flatnonzero(~t.terminated)
    batch = RelabeledData.of(dataset).batch(going)
    before, after = to_usd(t.remaining_nusd[going]), to_usd(t.remaining_nusd[going] - t.cost_nusd[going])
    following = turns.take(t.turn_row[going] + 1)
    state = encode_state(layout, turns.take(t.turn_row[going]), before, t.turn[going])
    np.testing.assert_array_equal(batch[Columns.OBS], state)
    np.testing.assert_array_equal(batch[Columns.NEXT_OBS], encode_state(layout, following, after, t.turn[going] + 1))
    np.testing.assert_array_equal(
        batch[NEXT_ALLOWED], affordable(following.estimates.cost_usd, following.estimates.cost_high_usd, after)
    )
    np.testing.assert_array_equal(batch[Columns.ACTIONS], t.action[going])
    np.testing.assert_array_equal(batch[Columns.REWARDS], t.reward[going])
    assert (batch[BANKRUPT] == 0).all()
    # What a transition leaves is what its successor starts with, where the logs judge every turn.
    successor = RelabeledData.of(dataset).batch(going + 1)
    np.testing.assert_array_equal(batch[Columns.NEXT_OBS], successor[Columns.OBS])


def test_a_terminated_row_has_no_future_and_a_bankrupt_one_no_quality() -> None:
    dataset = make_dataset()
    t = dataset.transitions
    batch = RelabeledData.of(dataset).batch(np.arange(len(t)))
    np.testing.assert_array_equal(batch[Columns.TERMINATEDS], t.terminated)
    np.testing.assert_array_equal(batch[BANKRUPT], t.bankrupt.astype(np.float32))
    assert 0 < t.bankrupt.sum() < t.terminated.sum() < len(t)
    assert (batch[Columns.REWARDS][t.bankrupt] == 0).all()
    assert (batch[Columns.REWARDS][~t.bankrupt] > 0).all()
    assert all(np.isfinite(batch[name]).all() for name in (Columns.OBS, Columns.NEXT_OBS))


def test_a_row_of_a_batch_is_the_same_in_any_batch() -> None:
    data = RelabeledData.of(make_dataset())
    whole, rows = data.batch(np.arange(len(data))), np.array([5, 0, 5, 17])
    for name, values in data.batch(rows).items():
        np.testing.assert_array_equal(values, whole[name][rows], err_msg=name)


def of_row(name: str, value: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        getattr(dataset.transitions, name)[3] = value

    return change


def of_turn(name: str, value: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        getattr(dataset.turns.estimates, name)[3, 1] = value

    return change


def forget(dataset: Dataset) -> None:
    dataset.turns.history[2, 0] = np.nan


DAMAGES: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "an action too high": (of_row("action", 3), r"actions must be in \[0, 3\), got 0..3"),
    "an action below 0": (of_row("action", -1), r"actions must be in \[0, 3\), got -1..2"),
    "a turn too far": (of_row("turn_row", 12), r"turn rows must be in \[0, 12\), got 0..13"),
    "an endless reward": (of_row("reward", np.inf), "a reward that is not finite"),
    "no quality": (of_turn("quality", np.nan), "a quality that is not finite"),
    "an endless cost": (of_turn("cost_high_usd", np.inf), "a cost_high_usd that is not finite"),
    "no history": (forget, "a history that is not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_dataset_that_cannot_be_is_refused(damage: str) -> None:
    dataset, (harm, words) = make_dataset(), DAMAGES[damage]
    RelabeledData.of(dataset)
    harm(dataset)
    with pytest.raises(DataError, match=words):
        RelabeledData.of(dataset)


def test_a_dataset_without_transitions_is_refused() -> None:
    dataset = make_dataset()
    nothing = dataset.transitions.take(np.array([], dtype=np.int64))
    with pytest.raises(DataError, match="no transitions; were all turns without a judgement"):
        RelabeledData.of(replace(dataset, transitions=nothing))


def shares_of(data: RelabeledData, num_shards: int, seed: int = 0) -> list[ShuffledRows]:
    reference = ray.put(lambda: data)
    return [ShuffledRows(reference, len(data), shard, num_shards, seed) for shard in range(num_shards)]


def epoch_of(batches: object) -> torch.Tensor:
    """All states of one epoch, [N, state_dim]."""
    return torch.cat([batch[f"{DEFAULT_MODULE_ID}/{Columns.OBS}"] for batch in batches])  # type: ignore[attr-defined]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_learners_share_an_epoch_without_overlap_and_each_epoch_anew() -> None:
    data = RelabeledData.of(make_dataset())
    states = torch.from_numpy(np.unique(data.batch(np.arange(len(data)))[Columns.OBS], axis=0))
    batches = [share.iter_torch_batches(batch_size=1) for share in shares_of(data, num_shards=2)]
    first, second = ([epoch_of(share) for share in batches] for _ in range(2))
    for epoch in (first, second):
        seen = torch.cat(epoch)
        assert [len(share) for share in epoch] == [len(data) // 2] * 2
        assert len(torch.unique(seen, dim=0)) >= len(states) - len(data) % 2
    assert not torch.equal(first[0], second[0])
    again = [epoch_of(share.iter_torch_batches(batch_size=1)) for share in shares_of(data, num_shards=2)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))  # the same seed
    other = epoch_of(shares_of(data, 2, seed=1)[0].iter_torch_batches(batch_size=1))
    assert not torch.equal(first[0], other)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_batches_that_the_data_cannot_fill_are_refused() -> None:
    data = RelabeledData.of(make_dataset())
    share = shares_of(data, num_shards=2)[0]
    assert len(epoch_of(share.iter_torch_batches(batch_size=len(data) // 2))) == len(data) // 2
    with pytest.raises(ConfigError, match=f"needs more than the {len(data)} transitions there are; lower the batch"):
        share.iter_torch_batches(batch_size=len(data) // 2 + 1)
