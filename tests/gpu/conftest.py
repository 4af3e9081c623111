"""A GPU, Ray that finds it by itself, and one small dataset. Without a GPU all fail; `make test` leaves them out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import write_sessions
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from seqroute_ray.ray_session import ray_session
from tests.training.toy_mdp import ToyMdp


@pytest.fixture(scope="package", autouse=True)
def _gpu() -> Iterator[None]:
    assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
    with ray_session():
        yield


@pytest.fixture(scope="package")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_sessions(ToyMdp(600, seed=0).sessions(), folder / "sessions.parquet")
    hbr = HbrConfig(paths="sampled", num_paths=4, num_budgets=4)
    relabel_sessions(
        RelabelConfig(sessions=folder / "sessions.parquet", out=folder / "dataset", hbr=hbr, runner="local")
    )
    return folder / "dataset"


@pytest.fixture(scope="package")
def tune_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, sessions = tmp_path_factory.mktemp("tune") / "sessions.parquet", ToyMdp(100, seed=1).sessions()
    write_sessions(replace(sessions, part=np.full_like(sessions.part, "tune", dtype="<U4")), path)
    return path
