"""RLlib's own conventions on rows that are not ours: a chain MDP whose values a hand can work out."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from seqroute_ray.core.errors import ConfigError, DataError
from seqroute_ray.training.ensemble import Ensemble
from seqroute_ray.training.rllib import DiscreteCQL, DiscreteCQLConfig
from tests.training.test_checkpoints import losses

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
LENGTH, GAMMA = 4, 0.5  # states 0..3; action 1 goes right, 0 ends with 0.1; going right from the last state earns 1


def q_value(state: int, action: int) -> float:
    """By hand: to go right is worth gamma ** (steps left)."""
    return GAMMA ** (LENGTH - 1 - state) if action else 0.1


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    state, action = rng.integers(0, LENGTH, 4000), rng.integers(0, 2, 4000)
    last = (action == 0) | (state == LENGTH - 1)
    following = np.where(last, state, state + 1)
    reward = np.select([action == 0, state == LENGTH - 1], [0.1, 1.0], 0.0)
    path = tmp_path_factory.mktemp("chain") / "rows.parquet"
    table = {
        "obs": np.eye(LENGTH)[state].tolist(),
        "next_obs": np.eye(LENGTH)[following].tolist(),
        "actions": action,
        "rewards": reward,
        "terminateds": last,
    }
    pq.write_table(pa.table(table), path)
    return path


def config_of(path: Path, num_iters: int, **training: Any) -> DiscreteCQLConfig:
    settings = {"cql_alpha": 0.0, "gamma": GAMMA, "lr": 5e-3, "tau": 0.05, "train_batch_size_per_learner": 128}
    config: DiscreteCQLConfig = (
        DiscreteCQLConfig()
        .offline_data(input_=str(path), dataset_num_iters_per_learner=num_iters)
        .training(**{**settings, **training})
        .debugging(seed=0)
    )
    return config


def q_table(algorithm: DiscreteCQL) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(algorithm.network()(torch.eye(LENGTH))[:, :2].numpy())


HAND = np.array([[q_value(s, a) for a in (0, 1)] for s in range(LENGTH)])


def test_double_q_learns_what_a_hand_works_out_and_conservatism_widens_the_gap(chain: Path) -> None:
    algorithm = config_of(chain, 500).build_algo()
    try:
        result = algorithm.train()
        np.testing.assert_allclose(q_table(algorithm), HAND, atol=0.03)
        logged = losses(result)
        assert logged["bankruptcy_loss"] < 0.01  # nothing here goes bankrupt
        assert logged["q_mean"] == pytest.approx(HAND.mean(), abs=0.05)
        assert logged["q_gap"] == pytest.approx((HAND.max(axis=1, keepdims=True) - HAND).mean(), abs=0.05)
    finally:
        algorithm.stop()


def learned_by(path: Path, ensemble_size: int) -> tuple[Ensemble, dict[str, float]]:
    """The networks after some steps, and what was logged."""
    torch.manual_seed(0)
    algorithm = config_of(path, 50).rl_module(model_config={"ensemble_size": ensemble_size}).build_algo()
    try:
        logged = losses(algorithm.train())
        return algorithm.network(), logged
    finally:
        algorithm.stop()


def test_each_network_of_an_ensemble_learns_as_it_would_alone_and_the_policy_is_their_mean(chain: Path) -> None:
    (alone, of_one), (both, of_two) = learned_by(chain, 1), learned_by(chain, 2)
    assert (len(alone.networks), len(both.networks)) == (1, 2)
    states = torch.eye(LENGTH)
    with torch.no_grad():
        first, second = both.each(states)
        torch.testing.assert_close(first, alone(states))
        assert (first - second).abs().max() > 1e-4
        torch.testing.assert_close(both(states), (first + second) / 2)
    assert of_two["td_loss"] == pytest.approx(of_one["td_loss"], rel=0.2)  # a mean over networks, not their sum


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_building_leaves_nothing_in_the_home_folder(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "ray_results"))
    config_of(chain, 1).build_algo().stop()
    assert not list(tmp_path.glob("ray_results*"))


def test_two_learners_learn_one_network_from_halves_of_the_rows_and_resume(chain: Path, tmp_path: Path) -> None:
    config = config_of(chain, 250, train_batch_size_per_learner=64).learners(num_learners=2)
    algorithm = config.build_algo()
    try:
        for _ in range(2):
            algorithm.train()
        np.testing.assert_allclose(q_table(algorithm), HAND, atol=0.05)
        both = list(algorithm.learner_group.foreach_learner(lambda learner: learner.get_state()["rl_module"]))
        ours, theirs = (result.get()[DEFAULT_MODULE_ID] for result in both)
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)
        saved = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        table = q_table(algorithm)
    finally:
        algorithm.stop()
    restored = DiscreteCQL.from_checkpoint(saved)
    try:
        np.testing.assert_array_equal(q_table(restored), table)
        assert restored.num_steps == 500
        steps = restored.learner_group.foreach_learner(lambda learner: learner.num_steps)
        assert [step.get() for step in steps] == [500, 500]
    finally:
        restored.stop()


def test_what_cannot_be_is_refused_before_anything_is_built(chain: Path) -> None:
    for settings, error, words in (
        ({"cql_alpha": -1.0}, ConfigError, "cql_alpha and td_weight must be >= 0"),
        ({"tau": 0.0}, ConfigError, r"tau must be in \(0, 1\]"),
        ({"train_batch_size_per_learner": 4001}, ConfigError, "needs more than the 4000 transitions there are"),
    ):
        with pytest.raises(error, match=words):
            config_of(chain, 1, **settings).build_algo()
    with pytest.raises(ConfigError, match="ensemble_size must be at least 1, got 0"):
        config_of(chain, 1).rl_module(model_config={"ensemble_size": 0}).build_algo()
    with pytest.raises(ConfigError, match="input_ must be one path of a file or a folder, got 'sampler'"):
        DiscreteCQLConfig().build_algo()
    with pytest.raises(DataError, match="no Parquet files here"):
        config_of(chain / "none", 1).build_algo()
    box = gym.spaces.Box(-1, 1, (3,))
    with pytest.raises(ConfigError, match="the data have observations of 4 numbers and 2 actions, the spaces are Box"):
        config_of(chain, 1).environment(observation_space=box, action_space=gym.spaces.Discrete(2)).build_algo()
    with pytest.raises(ConfigError, match="the data have observations of 4 numbers and 2 actions"):
        config_of(chain, 1).environment(action_space=gym.spaces.Discrete(1)).build_algo()


def test_a_loss_that_explodes_is_an_error(chain: Path) -> None:
    algorithm = config_of(chain, 200, lr=1e18, grad_clip=None).build_algo()
    try:
        with pytest.raises(DataError, match=r"the loss is (nan|inf) after 200 gradient steps; lower lr"):
            algorithm.train()
    finally:
        algorithm.stop()


def test_masked_actions_are_neither_bootstrapped_from_nor_pushed_down(chain: Path, tmp_path: Path) -> None:
    table = pq.read_table(chain)
    right_only = np.tile([False, True], (len(table), 1)).tolist()
    both = np.ones((len(table), 2), dtype=bool).tolist()
    left_only = np.tile([True, False], (len(table), 1)).tolist()
    masked = table.append_column("action_mask", pa.array(both)).append_column("next_action_mask", pa.array(left_only))
    pq.write_table(masked, tmp_path / "left.parquet")
    algorithm = config_of(tmp_path / "left.parquet", 500).build_algo()
    try:
        algorithm.train()
        # Only 0.1 can be had after going right, except in the last state.
        np.testing.assert_allclose(q_table(algorithm)[:, 1], [0.05, 0.05, 0.05, 1.0], atol=0.03)
    finally:
        algorithm.stop()
    rows = table.filter(pa.array(np.asarray(table["actions"]) == 1))
    masked = rows.append_column("action_mask", pa.array(right_only[: len(rows)]))
    pq.write_table(masked.append_column("next_action_mask", pa.array(both[: len(rows)])), tmp_path / "right.parquet")
    algorithm = config_of(tmp_path / "right.parquet", 5, cql_alpha=1.0).build_algo()
    try:
        assert losses(algorithm.train())["conservative_loss"] == 0.0  # the logged action is the only one allowed
    finally:
        algorithm.stop()
