"""Inspecting a dataset: what it says is what the transitions hold, and holes in coverage are named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.dataset import read_dataset
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.core.sessions import Sessions, write_sessions
from seqroute_ray.data.dry_run import plan_relabeling
from seqroute_ray.data.inspect import inspect_dataset, tables, to_json
from seqroute_ray.data.relabel import RelabelConfig, RelabelReport, relabel_sessions
from tests.support import make_sessions

HBR = HbrConfig(paths="sampled", num_paths=4, budget_multiples=(0.15, 0.7, 2.0))


def config_of(sessions: Sessions, folder: Path, hbr: HbrConfig = HBR) -> RelabelConfig:
    write_sessions(sessions, folder / "s.parquet")
    return RelabelConfig(sessions=folder / "s.parquet", out=folder / "d", hbr=hbr, runner="local")


def make(sessions: Sessions, folder: Path, hbr: HbrConfig = HBR) -> RelabelReport:
    return relabel_sessions(config_of(sessions, folder, hbr))


@pytest.fixture
def sessions() -> Sessions:
    return make_sessions([4] * 60, num_models=2)


def test_bands_count_what_the_transitions_hold(sessions: Sessions, tmp_path: Path) -> None:
    report = make(sessions, tmp_path)
    inspection, dataset = inspect_dataset(tmp_path / "d"), read_dataset(tmp_path / "d")
    t = dataset.transitions
    share = t.remaining_nusd / 1e9 / dataset.layout.reference_cost_usd
    assert sum(band.num_transitions for band in inspection.bands) == report.num_transitions == len(t)
    for band in inspection.bands:
        inside = (share >= band.low) & (share < band.high)
        assert band.num_transitions == inside.sum()
        assert band.bankrupt_share == pytest.approx(t.bankrupt[inside].mean())
        assert band.num_paths_begun == (t.turn[inside] == 0).sum()
        assert band.action_share["model-1"] == pytest.approx((t.action[inside] == 1).mean())
    assert inspection.is_covered
    files = [path.stat().st_size for path in (tmp_path / "d" / "transitions").iterdir()]
    assert inspection.bytes_transitions == sum(files)
    assert to_json(inspection)["bands"][-1]["high"] is None  # type: ignore[index]


def test_a_model_that_was_never_taken_in_a_band_is_named(sessions: Sessions, tmp_path: Path) -> None:
    make(replace(sessions, action=np.zeros_like(sessions.action)), tmp_path, replace(HBR, paths="logged"))
    inspection = inspect_dataset(tmp_path / "d")
    assert not inspection.is_covered
    assert {name for band in inspection.bands for name in band.never_taken} == {"model-1"}
    assert "never taken: model-1" in str(tables(inspection)[-1])


@pytest.mark.parametrize("name", ["turns/part-00000", "transitions/part-00000", "estimator"])
def test_every_checksum_is_checked(name: str, sessions: Sessions, tmp_path: Path) -> None:
    make(sessions, tmp_path)
    (path,) = (tmp_path / "d").glob(f"{name}*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=rf"{name}.*: cannot be read \(its checksum is not the manifest's\)"):
        inspect_dataset(tmp_path / "d")


def test_a_dry_run_foretells_and_writes_nothing(sessions: Sessions, tmp_path: Path) -> None:
    config = config_of(sessions, tmp_path)
    plan = plan_relabeling(config)
    assert not (tmp_path / "d").exists()
    report = relabel_sessions(config)
    assert plan.about_num_transitions == report.num_transitions  # one shard is the whole
    assert (plan.num_sessions, plan.num_turns, plan.num_shards) == (60, 240, report.num_shards)
    assert plan.about_bankrupt_share == pytest.approx(report.num_bankrupt / report.num_transitions)
    np.testing.assert_allclose(plan.budgets_usd, np.array([0.15, 0.7, 2.0]) * plan.reference_cost_usd)
    size = sum(path.stat().st_size for path in (tmp_path / "d").rglob("part-*"))
    assert size / 1.3 < plan.about_bytes < size * 1.3


def test_a_dry_run_tells_the_range_of_drawn_budgets(sessions: Sessions, tmp_path: Path) -> None:
    plan = plan_relabeling(config_of(sessions, tmp_path, HbrConfig(num_budgets=2, min_budget=0.01, max_budget=1.0)))
    assert plan.budgets_are_drawn
    np.testing.assert_allclose(np.array(plan.budgets_usd) / plan.reference_cost_usd, [0.01, 0.1, 1.0])


def test_a_dry_run_refuses_what_the_run_would(sessions: Sessions, tmp_path: Path) -> None:
    make(sessions, tmp_path)
    with pytest.raises(DataError, match="holds a finished dataset of other settings"):
        plan_relabeling(config_of(sessions, tmp_path, replace(HBR, seed=9)))
