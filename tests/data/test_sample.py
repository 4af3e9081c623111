from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqroute_ray.core.errors import ConfigError, UnknownModelError
from seqroute_ray.core.log_schema import conform, fit_types, with_values
from seqroute_ray.core.logs import check_rows
from seqroute_ray.data.bundled import load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL, Part, SampleConfig, sample_logs, write_sample


def sessions_of(table: pa.Table) -> dict[str, list[dict[str, object]]]:
    sessions: dict[str, list[dict[str, object]]] = {}
    for row in table.drop_columns(["embedding"]).to_pylist():
        sessions.setdefault(row["session_id"], []).append(row)
    return sessions


@pytest.mark.parametrize("part", ["fit", "tune", "test"])
def test_logs_are_clean_and_hold_questions_of_their_part_only(part: Part) -> None:
    table = sample_logs(SampleConfig(num_sessions=40, part=part, with_outcomes=True))
    outcomes = load_outcomes()
    part_of = dict(zip(outcomes.query_id.tolist(), outcomes.part.tolist(), strict=True))
    assert {part_of[question] for question in table["group_id"].to_pylist()} == {part}
    assert set(table["part"].to_pylist()) == {part}
    table = fit_types(table, "sample")
    assert check_rows(conform(table, with_values(table)), outcomes.catalog) == []


def test_lengths_are_in_range_and_questions_do_not_repeat_in_a_session() -> None:
    sessions = sessions_of(sample_logs(SampleConfig(num_sessions=300, min_turns=2, max_turns=5))).values()
    assert len(sessions) == 300
    assert {len(session) for session in sessions} == {2, 3, 4, 5}
    assert all(len({turn["group_id"] for turn in session}) == len(session) for session in sessions)


@pytest.mark.parametrize("focused_share", [0.0, 0.5, 1.0])
def test_focused_sessions_stay_on_one_source(focused_share: float) -> None:
    # 10 of 1704 questions at random are of one source with probability below 0.001.
    config = SampleConfig(num_sessions=200, focused_share=focused_share, min_turns=10, max_turns=12)
    one_source = [len({turn["source"] for turn in turns}) == 1 for turns in sessions_of(sample_logs(config)).values()]
    assert np.mean(one_source) == pytest.approx(focused_share, abs=0.0 if focused_share == 1.0 else 0.12)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first", "again", "other")]
    for path, seed in zip(paths, (3, 3, 4), strict=True):
        assert write_sample(SampleConfig(num_sessions=20, seed=seed), path) >= 80
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other


def test_propensities_are_the_shares_of_the_behaviour() -> None:
    small, middle, large = DEFAULT_POOL
    expected = {
        "uniform": {small: 1 / 3, middle: 1 / 3, large: 1 / 3},
        large: {large: 1.0},
        f"epsilon-{small}": {small: 0.7 + 0.1, middle: 0.1, large: 0.1},
    }
    for behaviour, propensity in expected.items():
        table = sample_logs(SampleConfig(num_sessions=400, behaviour=behaviour, epsilon=0.3))
        models = np.array(table["model"].to_pylist())
        assert set(models.tolist()) == set(propensity)
        for model, share in propensity.items():
            of_model = models == model
            np.testing.assert_allclose(np.asarray(table["propensity"])[of_model], share)
            assert of_model.mean() == pytest.approx(share, abs=0.05)


def test_outcomes_of_every_model_are_measured_and_agree_with_the_logged_turn() -> None:
    table = sample_logs(SampleConfig(num_sessions=30, with_outcomes=True))
    catalog = load_outcomes().catalog
    for row in table.drop_columns(["embedding"]).to_pylist():
        assert [outcome["model"] for outcome in row["outcomes"]] == list(DEFAULT_POOL)
        [own] = [outcome for outcome in row["outcomes"] if outcome["model"] == row["model"]]
        tokens = row["prompt_tokens"], row["completion_tokens"]
        assert own["quality"] == row["quality"]
        assert own["cost_usd"] == catalog.cost_usd(catalog.action(row["model"]), *tokens)


@pytest.mark.parametrize("behaviour", ["gpt-9", "epsilon-gpt-9", "claude-3-5-sonnet-20241022"])
def test_a_behaviour_outside_the_pool_is_an_error(behaviour: str) -> None:
    with pytest.raises(UnknownModelError, match=behaviour.removeprefix("epsilon-")):
        sample_logs(SampleConfig(num_sessions=1, behaviour=behaviour))


def test_nonsense_is_refused_with_the_value_and_the_rule() -> None:
    with pytest.raises(ConfigError, match="num_sessions must be at least 1, got 0"):
        SampleConfig(num_sessions=0)
    with pytest.raises(ConfigError, match="min_turns <= max_turns, got 5 and 4"):
        SampleConfig(min_turns=5, max_turns=4)
    with pytest.raises(ConfigError, match=r"epsilon must be in \[0, 1\], got 1.5"):
        SampleConfig(epsilon=1.5)
    with pytest.raises(ConfigError, match=r"max_turns must be at most 131, .* part 'test', got 200"):
        sample_logs(SampleConfig(part="test", max_turns=200))


def test_composed_sessions_are_the_bundled_ones_turn_by_turn() -> None:
    folder = files("seqroute_ray.data") / "bundled"
    with as_file(folder / "sessions.parquet") as path:
        turns = pq.read_table(path, filters=[("part", "=", "test")]).to_pylist()
    expected: dict[str, list[str]] = {}
    for turn in turns:
        assert turn["turn"] == len(expected.setdefault(turn["session_id"], []))
        expected[turn["session_id"]].append(turn["query_id"])
    sampled = sessions_of(sample_logs(SampleConfig(part="test", composed=True)))
    questions = [[turn["group_id"] for turn in session] for session in sampled.values()]
    assert questions == list(expected.values())
    assert len(questions) == 761
    first = sessions_of(sample_logs(SampleConfig(part="test", composed=True, num_sessions=10)))
    assert [[turn["group_id"] for turn in session] for session in first.values()] == questions[:10]


def test_the_bundled_files_are_small_and_hold_no_text() -> None:
    folder = files("seqroute_ray.data") / "bundled"
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) <= 4_000_000
    with as_file(folder / "queries.parquet") as path:
        columns = pq.read_schema(path).names
    assert columns == ["query_id", "source", "part", "embedding", "quality", "prompt_tokens", "completion_tokens"]
