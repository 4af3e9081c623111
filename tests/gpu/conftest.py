"""A GPU, Ray that finds it by itself, and one small dataset. Without a GPU all fail; `make test` leaves them out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seqroute_ray.ray_session import ray_session
from tests.training.toy_files import write_toy_dataset, write_tune_sessions


@pytest.fixture(scope="package", autouse=True)
def _gpu() -> Iterator[None]:
    assert torch.cuda.is_available(), f"torch {torch.__version__} sees no GPU"
    with ray_session():
        yield


@pytest.fixture(scope="package")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy"), num_sessions=600, num_paths=4)


@pytest.fixture(scope="package")
def tune_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tune_sessions(tmp_path_factory.mktemp("tune") / "sessions.parquet")
