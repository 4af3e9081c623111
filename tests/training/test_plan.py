"""The dry run: what it says holds, nothing is written, and settings that contradict each other are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.dataset import read_header
from seqroute_ray.core.errors import ConfigError
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.config import CqlConfig, TrainConfig
from seqroute_ray.training.plan import plan_training

pytestmark = pytest.mark.ray  # the dataset is relabeled on the cluster


def test_a_plan_counts_steps_epochs_and_parameters(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    cql = CqlConfig(hidden=(16, 8), risk_hidden=(4,), num_steps=600, batch_size=500, num_learners=2)
    plan = plan_training(TrainConfig(dataset=toy_dataset.out, out=tmp_path / "policy", cql=cql, checkpoint_every=250))
    layout = read_header(toy_dataset.out).layout
    width = layout.num_context + 5  # a head's input: the context and what it sees of one action, 5 or 6 numbers
    quality = width * 16 + 16 + 16 * 8 + 8 + 8 + 1
    bankruptcy = (width + 1) * 4 + 4 + 4 + 1
    assert plan.num_parameters == quality + bankruptcy + 1  # and the weight of the estimates
    assert len(plan.network) == 5
    assert (plan.num_steps, plan.num_checkpoints, plan.rows_per_step) == (750, 3, 1000)
    assert plan.num_epochs == pytest.approx(750 * 1000 / toy_dataset.num_transitions)
    assert 0 < plan.about_step_s * 749 < plan.about_wall_s
    assert not plan.streams
    thrice = replace(cql, ensemble_size=3)
    of_three = plan_training(TrainConfig(dataset=toy_dataset.out, out=tmp_path / "policy", cql=thrice))
    assert of_three.num_parameters == 3 * plan.num_parameters
    assert of_three.network == [f"3 x {layer}" for layer in plan.network]
    assert list(tmp_path.iterdir()) == []
    small = replace(cql, memory_mb=1.0)
    streamed = plan_training(TrainConfig(dataset=toy_dataset.out, out=tmp_path / "policy", cql=small))
    assert streamed.streams
    assert streamed.about_rows_mb < 2.0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a batch of more than there is": ({"batch_size": 10_000_000}, "lower the batch size"),
    "no rows in memory": ({"memory_mb": 0.0}, "memory_mb must be > 0, got 0.0"),
    "nothing to learn": ({"cql_alpha": 0.0, "td_weight": 0.0}, "one of them > 0"),
    "no network": ({"ensemble_size": 0}, "ensemble_size must be at least 1, got 0"),
    "less than no learner": ({"num_learners": -1}, "must be >= 0, got -1"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_settings_that_contradict_each_other_are_refused(
    problem: str, toy_dataset: RelabelReport, tmp_path: Path
) -> None:
    settings, words = REFUSED[problem]
    with pytest.raises(ConfigError, match=words):
        plan_training(TrainConfig(dataset=toy_dataset.out, out=tmp_path, cql=CqlConfig(**settings)))
