"""The paper's setting, made small: the whole way on Ray, and its own rules by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from ray.rllib.core.columns import Columns

from seqroute_ray.core.dataset import read_dataset
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.paper import BUDGETS, PENALTY, PaperData, run_paper
from seqroute_ray.training.reader import BANKRUPT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("paper")
    run_paper(folder, num_sessions=100, num_steps=6, seed=0)
    return folder


def test_a_tree_of_16_paths_under_5_budgets_is_cut_at_bankruptcy(out: Path) -> None:
    report = json.loads((out / "paper.json").read_text())
    assert 0.6 * 100 * 16 * 5 * 4 < report["num_transitions"] < 100 * 16 * 5 * 4
    assert [row["policy"] for row in report["rows"]][:3] == ["always 8B", "always 70B", "random"]


def test_budgets_keep_the_papers_proportion_to_the_small_model(out: Path) -> None:
    sessions, manifest = read_sessions(out / "sessions-fit.parquet"), read_dataset(out / "dataset").manifest
    small_session_usd = 4 * sessions.outcome_cost_nusd[:, 0].mean() / 1e9
    np.testing.assert_allclose(manifest["configs"]["hbr"]["budgets_usd"], np.array(BUDGETS) / 921 * small_session_usd)


def test_a_token_of_the_large_model_costs_ten_of_the_small(out: Path) -> None:
    sessions = read_sessions(out / "sessions-fit.parquet")
    assert (sessions.outcome_cost_nusd[:, 0] % 1_000 == 0).all()
    assert (sessions.outcome_cost_nusd[:, 1] % 10_000 == 0).all()


def test_the_bankrupting_turn_is_credited_and_punished_inside_one_reward(out: Path) -> None:
    dataset, sessions = read_dataset(out / "dataset"), read_sessions(out / "sessions-fit.parquet")
    data = PaperData(sessions.embedding.astype(np.float32), sessions.outcome_quality, 1.0, dataset.transitions)
    rows = np.flatnonzero(dataset.transitions.bankrupt)[:50]
    batch, t = data.batch(rows), dataset.transitions.take(rows)
    quality = sessions.outcome_quality[t.turn_row, t.action]
    np.testing.assert_allclose(batch[Columns.REWARDS], quality - PENALTY)
    assert set(quality.tolist()) == {0.0, 1.0}
    assert not batch[BANKRUPT].any()
    np.testing.assert_allclose(batch[Columns.OBS][:, -1], t.remaining_nusd / 1e9, rtol=1e-6)
