"""The page of a search for settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqroute_ray.evaluation.tune_report import against_settings, best_looks, over_steps, settings_in, write_tune_report


def look(trial: str, num_steps: int, aiq: float, **settings: Any) -> dict[str, Any]:
    figures = {"aiq": aiq, "aiq_log": 0.1, "quality": 0.2, "cost_usd_per_turn": 0.01, "bankruptcy_rate": 0.034}
    return {"trial": trial, "status": "finished", **settings, "num_steps": num_steps, **figures}


A, B = {"lr": 0.001, "hidden": "64-64", "batch_size": 512}, {"lr": 0.004, "hidden": "32-32", "batch_size": 1024}
LOOKS = [look("a", 10, 0.5, **A), look("a", 20, 0.7, **A), look("a", 30, 0.6, **A), look("b", 10, 0.65, **B)]


def test_a_trial_stands_at_its_best_look_and_tells_how_far_it_came() -> None:
    found = [(one["trial"], one["num_steps"], one["aiq"], one["last_step"]) for one in best_looks(LOOKS, "aiq")]
    assert found == [("a", 20, 0.7, 30), ("b", 10, 0.65, 10)]
    assert settings_in(LOOKS) == ["lr", "hidden", "batch_size"]


def test_every_setting_has_a_plot_with_a_point_a_trial() -> None:
    figure = against_settings(best_looks(LOOKS, "aiq"), "aiq", ["lr"])
    plots = {axis.get_xlabel(): axis for axis in figure.axes if axis.get_xlabel()}
    assert list(plots) == ["lr", "hidden", "batch_size"]
    assert [plots[name].get_xscale() for name in plots] == ["log", "linear", "linear"]
    points = {name: np.asarray(axis.collections[1].get_offsets()).tolist() for name, axis in plots.items()}
    assert points["lr"] == [[0.001, 0.7], [0.004, 0.65]]
    assert points["hidden"] == [[1, 0.7], [0, 0.65]]  # by width
    assert [label.get_text() for label in plots["batch_size"].get_xticklabels()] == ["512", "1024"]
    ring = np.asarray(plots["lr"].collections[0].get_offsets()).tolist()
    assert ring == [[0.001, 0.7]]


def test_the_best_trial_is_drawn_last_and_strong() -> None:
    lines = over_steps(LOOKS, "aiq").axes[0].lines
    assert [np.asarray(line.get_xdata()).tolist() for line in lines] == [[10], [10, 20, 30]]
    assert lines[1].get_linewidth() > lines[0].get_linewidth()


def test_the_page_holds_every_trial_and_its_settings(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(LOOKS), tmp_path / "results.parquet")
    write_tune_report(tmp_path / "results.parquet", "aiq", tmp_path / "report.html", ["lr"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    for cell in ("2 trials, 4 looks", "0.7000", "3.4", "64-64", "1024", "0.004", "finished"):
        assert cell in page, cell


def test_a_search_of_one_trial_has_a_page_too(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(LOOKS[:1]), tmp_path / "results.parquet")
    write_tune_report(tmp_path / "results.parquet", "aiq", tmp_path / "report.html", ["lr"])
    assert "1 trials, 1 looks" in (tmp_path / "report.html").read_text()
