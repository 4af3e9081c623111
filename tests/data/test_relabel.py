"""Relabeling on Ray Data: the same dataset whoever does the work, and nothing half-written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.dataset import MANIFEST, read_dataset
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import EstimatorConfig, cross_fitted, fit_estimator, observe
from seqroute_ray.core.hbr import HbrConfig, relabel
from seqroute_ray.core.mdp import running_mean
from seqroute_ray.core.sessions import Sessions, write_sessions
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from tests.support import make_sessions

JOBS = Path(__file__).parent.parent.parent / "jobs"
HBR = HbrConfig(paths="sampled", num_paths=2, num_budgets=2)


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    rng = np.random.default_rng(0)
    return make_sessions(rng.integers(1, 6, size=1200).tolist(), num_models=3)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_hold_what_the_kernel_gives_for_all_sessions_at_once(sessions: Sessions, tmp_path: Path) -> None:
    write_sessions(sessions, tmp_path / "s.parquet")
    seen: list[tuple[int, int]] = []
    config = RelabelConfig(sessions=tmp_path / "s.parquet", out=tmp_path / "d", hbr=HBR)
    report = relabel_sessions(config, lambda done, total: seen.append((done, total)))
    dataset = read_dataset(tmp_path / "d")
    whole = relabel(sessions, 0, dataset.layout.reference_cost_usd, HBR)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(dataset.transitions, name), values, err_msg=name)
    assert seen == [(1, 3), (2, 3), (3, 3)]  # 1,200 sessions are three row groups
    again = relabel_sessions(RelabelConfig(sessions=tmp_path / "s.parquet", out=tmp_path / "e", hbr=HBR))
    assert again.data_fingerprint == report.data_fingerprint


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_turn_table_is_cross_fitted_and_the_stored_estimator_is_not(sessions: Sessions, tmp_path: Path) -> None:
    few = sessions.take(np.arange(200))
    write_sessions(few, tmp_path / "s.parquet")
    relabel_sessions(RelabelConfig(sessions=tmp_path / "s.parquet", out=tmp_path / "d", hbr=HBR))
    dataset = read_dataset(tmp_path / "d")
    estimates, summary = cross_fitted(few, EstimatorConfig())
    for name, values in vars(estimates).items():
        np.testing.assert_array_equal(getattr(dataset.turns.estimates, name), values, err_msg=name)
    np.testing.assert_array_equal(dataset.turns.history, running_mean(summary, few.offsets))
    whole = fit_estimator(observe(few), EstimatorConfig(), few.catalog.names)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(dataset.estimator.arrays()[name], array, err_msg=name)
    assert dataset.layout.summary_width == dataset.estimator.features.summary_width == summary.shape[1]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_dataset_is_not_overwritten(sessions: Sessions, tmp_path: Path) -> None:
    write_sessions(sessions.take(np.arange(200)), tmp_path / "s.parquet")
    config = RelabelConfig(sessions=tmp_path / "s.parquet", out=tmp_path / "d", hbr=HBR)
    relabel_sessions(config)
    before = (tmp_path / "d" / MANIFEST).read_bytes()
    with pytest.raises(DataError, match="holds a finished dataset already"):
        relabel_sessions(config)
    assert (tmp_path / "d" / MANIFEST).read_bytes() == before


def test_other_paths_than_the_logged_need_every_outcome(sessions: Sessions, tmp_path: Path) -> None:
    few = sessions.take(np.arange(200))
    few.outcome_cost_nusd[3, 1] = -1
    write_sessions(few, tmp_path / "s.parquet")
    config = RelabelConfig(sessions=tmp_path / "s.parquet", out=tmp_path / "d", hbr=HBR)
    with pytest.raises(DataError, match=r"needs every model's outcome of every turn; use paths=logged"):
        relabel_sessions(config)
    assert not (tmp_path / "d").exists()


@pytest.mark.ray
def test_the_job_is_the_command(sessions: Sessions, tmp_path: Path) -> None:
    write_sessions(sessions.take(np.arange(200)), tmp_path / "s.parquet")
    command = [sys.executable, str(JOBS / "relabel.py"), "--sessions", "s.parquet", "--out", "d"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / MANIFEST).exists()
    refused = subprocess.run(
        [*command, "--hbr.num-budgets", "0"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
