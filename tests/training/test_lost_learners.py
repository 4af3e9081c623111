"""Learners that die, and learners that fail: what the run says of either."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seqroute_ray.core.errors import DataError, StoppedError
from seqroute_ray.data.relabel import RelabelReport
from seqroute_ray.training.checkpoints import Checkpoints
from seqroute_ray.training.learner import DiscreteCQLLearner
from seqroute_ray.training.reader import BatchSource
from seqroute_ray.training.rllib import DiscreteCQLConfig
from seqroute_ray.training.sources import open_source

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
LOST = "1 of 1 learners are lost: .* run the same command again: it goes on from its newest checkpoint"


def config_of(dataset: str, **training: Any) -> DiscreteCQLConfig:
    config: DiscreteCQLConfig = (
        DiscreteCQLConfig()
        .offline_data(input_=dataset, dataset_num_iters_per_learner=5)
        .training(train_batch_size_per_learner=64, **training)
        .learners(num_learners=1)
    )
    return config


class DiesAsItSaves(DiscreteCQLLearner):
    def save_to_path(self, *_args: Any, **_kwargs: Any) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def test_a_checkpoint_that_a_learner_does_not_live_to_write_is_none(toy_dataset: RelabelReport, tmp_path: Path) -> None:
    algorithm = config_of(toy_dataset.out, learner_class=DiesAsItSaves).build_algo()
    checkpoints = Checkpoints(tmp_path, keep=1, metric="aiq")
    try:
        algorithm.train()
        with pytest.raises(StoppedError, match=LOST):
            checkpoints.save(algorithm, 5, {})
        assert checkpoints.all() == []
        with pytest.raises(StoppedError, match=LOST):
            algorithm.train()
    finally:
        algorithm.stop()


def open_here_only(dataset: str, pid: int) -> BatchSource:
    if os.getpid() != pid:
        raise DataError("nothing is here")
    return open_source(dataset, 64.0)


def test_an_error_of_a_learner_is_told_as_it_is(toy_dataset: RelabelReport) -> None:
    source_fn = partial(open_here_only, toy_dataset.out, os.getpid())
    algorithm = config_of(toy_dataset.out, source_fn=source_fn).build_algo()
    try:
        with pytest.raises(DataError) as caught:
            algorithm.train()
        assert str(caught.value) == "nothing is here"
    finally:
        algorithm.stop()
