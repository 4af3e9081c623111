"""A small evaluation from sampled logs to both reports."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.errors import ArtefactError, ConfigError, DataError
from seqroute_ray.core.fitting import EstimatorConfig, fit_estimator, observe
from seqroute_ray.core.mdp import StateLayout, expected_turns_left, reference_cost_usd
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.sessions import Sessions, read_sessions, write_sessions
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.sample import DEFAULT_POOL, Part, SampleConfig, write_sample
from seqroute_ray.evaluation.compare import REGIMES
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.evaluation.evaluate import Kept, evaluate, report_of
from seqroute_ray.evaluation.families import CQL_ANY_RISK, LEARNED
from tests.support import make_artefact, make_network, make_sessions

BUDGETS, LAMBDAS = (0.1, 1.0), (0.0, 50.0)  # multiples of the reference cost; quality per USD
SIMPLE = (*(f"only {name}" for name in DEFAULT_POOL), "random", "budget heuristic")
FITTED = (
    "static mixture",
    "first large",
    "threshold router",
    "boundary-guided",
    "greedy on estimates",
    "myopic",
    "pacing",
    "dynamic program on types",
    "dynamic program",
)
BASELINES = ("behaviour cloning", *SIMPLE, *FITTED)  # in the order of the report
ROW_FIELDS = {
    "policy",
    "knob",
    "lambda_per_usd",
    "budget_usd",
    "quality",
    "quality_ci",
    "cost_usd_per_turn",
    "cost_ci",
    "bankruptcy_rate",
    "bankruptcy_ci",
    "model_share",
}
PRICED = {"quality": "quality_ci", "cost_usd_per_turn": "cost_ci", "bankruptcy_rate": "bankruptcy_ci"}


def sampled_sessions(folder: Path, part: Part, num_sessions: int) -> Path:
    sample = SampleConfig(num_sessions=num_sessions, part=part, with_outcomes=True, focused_share=0.2)
    write_sample(sample, folder / f"logs-{part}.parquet")
    logs, out = folder / f"logs-{part}.parquet", folder / f"{part}.parquet"
    import_logs(ImportConfig(logs=(logs,), out=out, models=DEFAULT_POOL, runner="local"))
    return out


def untrained_artefact(fit: Sessions, seed: int) -> PolicyArtefact:
    """The estimator of the sessions and a network of random weights."""
    num_models, cost_usd = len(fit.catalog), to_usd(fit.cost_nusd)
    estimator = fit_estimator(observe(fit), EstimatorConfig(), fit.catalog.names)
    layout = StateLayout(
        num_models=num_models,
        summary_width=estimator.features.summary_width,
        reference_cost_usd=reference_cost_usd(cost_usd, fit.action, num_models),
        expected_turns_left=expected_turns_left(fit.num_turns),
    )
    return make_artefact(
        num_models,
        catalog=fit.catalog,
        layout=layout,
        estimator=estimator,
        network=make_network(layout, seed),
        configs={
            "mean_cost_usd": [float(cost_usd[fit.action == k].mean()) for k in range(num_models)],
            "estimator": asdict(EstimatorConfig()),
        },
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("evaluate")
    fit, test = (sampled_sessions(folder, "fit", 60), sampled_sessions(folder, "test", 40))
    for seed, name in enumerate(("policy", "cloning")):
        untrained_artefact(read_sessions(fit), seed).save(folder / name)
    return EvaluateConfig(
        policy=folder / "policy",
        sessions=test,
        out=folder / "out",
        fit_sessions=fit,
        cloning=folder / "cloning",
        budgets=BUDGETS,
        lambdas_per_usd=LAMBDAS,
        num_replicates=200,
    )


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def report(config: EvaluateConfig, progress: list[tuple[int, int]]) -> dict[str, Any]:
    """report.json as a reader finds it."""
    returned = evaluate(config, lambda done, total: progress.append((done, total)))
    written: dict[str, Any] = json.loads((config.out / "report.json").read_text())
    assert written == json.loads(json.dumps(returned))
    return written


def test_there_is_one_row_for_each_policy_lambda_and_budget(report: dict[str, Any]) -> None:
    contestants = [(name, None) for name in (CQL_ANY_RISK, *BASELINES, "oracle")] + [("cql", x) for x in LAMBDAS]
    amounts = [multiple * report["header"]["reference_cost_usd"] for multiple in BUDGETS]
    keys = [(row["policy"], row["lambda_per_usd"], row["budget_usd"]) for row in report["rows"]]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(name, value, amount) for name, value in contestants for amount in amounts}


def test_the_rows_of_a_policy_are_in_order_of_budget(report: dict[str, Any]) -> None:
    """Figures join them by lines, also where each budget has another setting of the knob."""
    by_policy: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        by_policy.setdefault((row["policy"], row["lambda_per_usd"]), []).append(row)
    for rows in by_policy.values():
        assert [row["budget_usd"] for row in rows] == sorted(row["budget_usd"] for row in rows)
    assert any(len({row["knob"] for row in rows}) > 1 for rows in by_policy.values())


def test_a_row_has_exactly_the_promised_fields_and_its_intervals_contain_its_figures(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert set(row) == ROW_FIELDS
        for figure, interval in PRICED.items():
            low, high = row[interval]
            assert low - 1e-9 <= row[figure] <= high + 1e-9, (row["policy"], figure)
        assert list(row["model_share"]) == list(DEFAULT_POOL)
        assert sum(row["model_share"].values()) == pytest.approx(1.0)


def test_no_row_spends_more_than_its_budget_or_earns_more_than_the_oracle(
    report: dict[str, Any], config: EvaluateConfig
) -> None:
    turns_a_session = report["header"]["num_turns"] / report["header"]["num_sessions"]
    best = {row["budget_usd"]: row["quality"] for row in report["rows"] if row["policy"] == "oracle"}
    for row in report["rows"]:
        assert row["cost_usd_per_turn"] * turns_a_session <= row["budget_usd"]
        assert row["quality"] <= best[row["budget_usd"]]
    assert len(best) == len(config.budgets)


def test_single_models_that_are_never_bankrupt_have_the_means_of_the_sessions(
    report: dict[str, Any], config: EvaluateConfig
) -> None:
    sessions = read_sessions(config.sessions)
    rows = [row for row in report["rows"] if row["policy"].startswith("only ") and row["bankruptcy_rate"] == 0.0]
    assert rows
    for row in rows:
        action = sessions.catalog.action(row["policy"].removeprefix("only "))
        assert row["quality"] == pytest.approx(sessions.outcome_quality[:, action].mean())
        assert row["cost_usd_per_turn"] == pytest.approx(to_usd(sessions.outcome_cost_nusd[:, action]).mean())
        assert row["model_share"][sessions.catalog.names[action]] == 1.0


def test_the_verdict_is_the_difference_to_the_best_simple_policy(report: dict[str, Any]) -> None:
    quality = {(row["policy"], row["lambda_per_usd"], row["budget_usd"]): row["quality"] for row in report["rows"]}
    simple = {name for name, _, _ in quality if name.startswith("only ") or name in ("random", "behaviour cloning")}
    assert len(report["verdicts"]) == len(BUDGETS) * len(LAMBDAS)
    for verdict in report["verdicts"]:
        budget_usd = verdict["budget_usd"]
        best = max(quality[name, None, budget_usd] for name in simple)
        assert quality[verdict["best_simple"], None, budget_usd] == best
        difference = quality["cql", verdict["lambda_per_usd"], budget_usd] - best
        assert verdict["quality_difference"] == pytest.approx(difference)
        low, high = verdict["difference_ci"]
        assert low <= verdict["quality_difference"] <= high


def test_every_baseline_is_compared_with_the_policy_in_every_regime_at_every_budget(report: dict[str, Any]) -> None:
    reference_usd = report["header"]["reference_cost_usd"]
    rows = {(row["policy"], round(row["budget_usd"] / reference_usd, 6)): row for row in report["rows"]}
    compared = [(row["regime"], row["baseline"], round(row["budget"], 6)) for row in report["comparisons"]]
    assert compared == [(regime, name, budget) for regime in REGIMES for name in BASELINES for budget in BUDGETS]
    for row in report["comparisons"]:
        assert row["low"] <= row["difference"] <= row["high"]
        if row["regime"] == "most quality":  # as the rows are chosen
            ours, theirs = (rows[name, round(row["budget"], 6)] for name in (CQL_ANY_RISK, row["baseline"]))
            assert (row["cql_knob"], row["knob"]) == (ours["knob"], theirs["knob"])
            assert row["difference"] == pytest.approx(ours["quality"] - theirs["quality"])


def test_knobs_are_chosen_on_the_tune_part_where_one_is_named(config: EvaluateConfig, tmp_path: Path) -> None:
    tune = sampled_sessions(tmp_path, "tune", 40)
    quick = replace(config, fit_sessions=None, cloning=None)
    chosen = report_of(replace(quick, tune_sessions=tune))
    best = report_of(replace(quick, sessions=tune, part="tune"))
    assert chosen["header"]["knobs_chosen_on"] == "tune part"
    knobs, best_knobs = (
        {(row["policy"], row["budget_usd"], row["lambda_per_usd"]): row["knob"] for row in report["rows"]}
        for report in (chosen, best)
    )
    assert knobs == best_knobs


def test_the_header_says_what_was_evaluated(report: dict[str, Any], config: EvaluateConfig) -> None:
    artefact, sessions = PolicyArtefact.load(config.policy), read_sessions(config.sessions)
    header = report["header"]
    assert header["policy_version"] == artefact.version
    assert header["data_fingerprint"] == artefact.data_fingerprint
    assert (header["models"], header["parts"]) == (list(DEFAULT_POOL), ["test"])
    assert (header["num_sessions"], header["num_turns"]) == (40, len(sessions.action))
    assert header["num_questions"] == len(set(sessions.group_id.tolist()))


def test_progress_counts_every_replay(report: dict[str, Any], progress: list[tuple[int, int]]) -> None:
    total = len(progress)
    assert total > len(report["rows"])  # a row is the best of its knob's settings
    assert progress == [(done, total) for done in range(1, total + 1)]


def test_the_same_config_gives_the_same_figures(report: dict[str, Any], config: EvaluateConfig) -> None:
    assert json.loads(json.dumps(report_of(config))) == report


class Page(HTMLParser):
    """Checks that every element is closed where it must be; collects elements and attributes."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def html(report: dict[str, Any], config: EvaluateConfig) -> str:  # noqa: ARG001 - written with the report
    return (config.out / "report.html").read_text()


def test_the_page_is_well_formed_and_has_seven_figures(html: str) -> None:
    page = Page(html)
    assert page.tags.count("svg") == 7
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("head") == 1


def test_the_page_loads_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    loading = [value for name, value in page.attributes if name in ("href", "xlink:href", "src", "srcset", "action")]
    assert loading  # the figures refer to their own markers
    assert all(value.startswith("#") for value in loading)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)


def test_every_reference_inside_the_page_has_its_target(html: str) -> None:
    page = Page(html)
    ids = {value for name, value in page.attributes if name == "id"}
    wanted = {value[1:] for name, value in page.attributes if name == "xlink:href"} | set(
        re.findall(r"url\(#([^)]+)\)", html)
    )
    assert wanted <= ids


def test_the_page_names_the_policy_every_contestant_and_the_budgets(report: dict[str, Any], html: str) -> None:
    assert report["header"]["policy_version"] in html
    for row in report["rows"]:
        assert f"<td>{row['policy']}</td>" in html
    for multiple in BUDGETS:
        assert f"budget {multiple:.2f}x" in html


def test_names_of_models_are_escaped_in_the_page(tmp_path: Path) -> None:
    sessions = make_sessions([3] * 10)
    first, second = sessions.catalog.models
    catalog = replace(sessions.catalog, models=(replace(first, name="<b>&bold"), second))
    sessions = replace(sessions, catalog=catalog, part=np.full(sessions.num_sessions, "test"))
    write_sessions(sessions, tmp_path / "test.parquet")
    make_artefact(catalog=catalog).save(tmp_path / "policy")
    config = EvaluateConfig(
        policy=tmp_path / "policy",
        sessions=tmp_path / "test.parquet",
        out=tmp_path,
        budgets=(0.5,),
        lambdas_per_usd=(0.0,),
        num_replicates=100,
    )
    report = evaluate(config)
    page = (tmp_path / "report.html").read_text()
    assert "b" not in Page(page).tags
    assert "only &lt;b&gt;&amp;bold" in page
    names = {row["policy"] for row in report["rows"]}
    assert not names & {*FITTED, "behaviour cloning"}  # not asked for


def test_sessions_of_another_pool_are_refused_in_one_line(config: EvaluateConfig, tmp_path: Path) -> None:
    write_sessions(replace(make_sessions([2, 3]), part=np.full(2, "test")), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"pool model-0, model-1 or its prices differ from the policy's") as caught:
        evaluate(replace(config, sessions=tmp_path / "other.parquet", out=tmp_path / "out"))
    assert str(tmp_path / "other.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sessions_at_other_prices_are_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    sessions = read_sessions(config.sessions)
    dearer = tuple(replace(model, usd_per_m_output=2 * model.usd_per_m_output) for model in sessions.catalog.models)
    write_sessions(replace(sessions, catalog=replace(sessions.catalog, models=dearer)), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="or its prices differ"):
        evaluate(replace(config, sessions=tmp_path / "other.parquet", out=tmp_path / "out"))


def test_a_cloning_artefact_of_another_pool_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    make_artefact(2).save(tmp_path / "cloning")
    with pytest.raises(ArtefactError, match="trained for the catalog model-0, model-1"):
        evaluate(replace(config, cloning=tmp_path / "cloning", out=tmp_path / "out"))


def test_sessions_without_outcomes_are_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    sessions = read_sessions(config.sessions)
    unknown = np.full_like(sessions.outcome_quality, np.nan)
    write_sessions(replace(sessions, outcome_quality=unknown), tmp_path / "logged.parquet")
    with pytest.raises(DataError, match="replay needs the outcome of every model"):
        evaluate(replace(config, sessions=tmp_path / "logged.parquet", out=tmp_path / "out"))


def test_missing_inputs_are_named(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no manifest\.json here"):
        evaluate(replace(config, policy=tmp_path / "absent"))
    with pytest.raises(DataError, match="no such session file"):
        evaluate(replace(config, sessions=tmp_path / "absent.parquet"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budgets": ()}, "budgets must be > 0"),
        ({"budgets": (0.1, 0.0)}, r"budgets must be > 0 and finite, got \(0.1, 0.0\)"),
        ({"budgets": (float("nan"),)}, "budgets must be > 0 and finite, got .*nan"),
        ({"budgets": (float("inf"),)}, "budgets must be > 0 and finite"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"lambdas_per_usd": (-1.0,)}, "lambdas_per_usd must be finite and >= 0, got .*-1"),
        ({"lambdas_per_usd": (0.0, float("inf"))}, "lambdas_per_usd must be finite and >= 0, got .*inf"),
        ({"num_replicates": 99}, "num_replicates must be at least 100 for a 95 % interval, got 99"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvaluateConfig(policy=Path("policy"), sessions=Path("s.parquet"), out=Path("out"), **fields)


def test_kept_baselines_change_no_figure(config: EvaluateConfig, tmp_path: Path) -> None:
    untrained_artefact(read_sessions(config.fit_sessions or config.sessions), 7).save(tmp_path / "other")
    tune = sampled_sessions(tmp_path, "tune", 40)
    first = replace(config, budgets=(0.2,), lambdas_per_usd=(0.0,), tune_sessions=tune)
    other, kept = replace(first, policy=tmp_path / "other"), Kept()
    report_of(first, kept=kept)
    assert "random" in kept.measured.keys() & kept.on_tune.keys()
    assert not set(LEARNED) & (kept.measured.keys() | kept.on_tune.keys())
    with_kept, seen = report_of(other, kept=kept), list[tuple[int, int]]()
    assert with_kept == report_of(other, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
