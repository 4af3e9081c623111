import re
from decimal import Decimal
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.grouping import build_sessions
from seqroute_ray.core.log_schema import LOG_SCHEMA, conform, fit_types, require_columns, with_values
from seqroute_ray.core.logs import Elsewhere, Origin, check_rows
from seqroute_ray.core.sessions import NOT_MEASURED_NUSD, Sessions, to_table

CATALOG = Catalog(
    (
        ModelSpec(name="small", usd_per_m_input=0.06, usd_per_m_output=0.06),
        ModelSpec(name="middle", usd_per_m_input=0.15, usd_per_m_output=0.6),
        ModelSpec(name="large", usd_per_m_input=2.5, usd_per_m_output=10.0),
    )
)
Row = dict[str, Any]


def row(session_id: str, turn: int, **fields: Any) -> Row:
    return {
        "session_id": session_id,
        "turn": turn,
        "embedding": [3.0, 4.0],
        "model": "small",
        "quality": 1.0,
        "cost_usd": 0.001,
        **fields,
    }


def table_of(rows: list[Row]) -> pa.Table:
    return conformed(pa.Table.from_pylist(rows, LOG_SCHEMA))


def conformed(table: pa.Table) -> pa.Table:
    """All the logs as one table."""
    table = fit_types(table, "logs")
    require_columns(with_values(table), "logs")
    return conform(table, with_values(table))


def group(rows: list[Row]) -> Sessions:
    table = table_of(rows)
    assert check_rows(table, CATALOG) == []
    embeddings = np.array([row["embedding"] for row in rows])
    return build_sessions(table, CATALOG, "wordllama", embeddings)


quality = st.none() | st.floats(0, 1)
cost_usd = st.floats(0, 10)
outcomes = st.lists(
    st.fixed_dictionaries({"model": st.sampled_from(CATALOG.names), "quality": quality, "cost_usd": cost_usd}),
    unique_by=lambda outcome: outcome["model"],
)


@st.composite
def clean_rows(draw: st.DrawFn) -> list[Row]:
    lengths = draw(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 4), min_size=1, max_size=4))
    rows = []
    for session_id, length in lengths.items():
        for turn in range(length):
            fields = {
                "embedding": [draw(st.floats(-1, 1, width=16)), 1.0],
                "model": draw(st.sampled_from(CATALOG.names)),
                "quality": draw(quality),
                "cost_usd": draw(cost_usd),
                "propensity": draw(st.none() | st.floats(0.01, 1)),
                "outcomes": draw(st.none() | outcomes),
            }
            rows.append(row(session_id, turn, **fields))
    rows[0]["quality"], rows[0]["outcomes"] = 0.5, []  # a column without any value would be absent
    return rows


@settings(deadline=None)  # the machine may be busy
@given(clean_rows(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_change_the_sessions(rows: list[Row], random: Random) -> None:
    shuffled = random.sample(rows, len(rows))
    # repr: NaN, where a turn was not judged, is unequal to itself
    assert repr(to_table(group(shuffled)).to_pylist()) == repr(to_table(group(rows)).to_pylist())


@settings(deadline=None)  # the machine may be busy
@given(clean_rows())
def test_each_row_is_one_turn_with_its_own_values(rows: list[Row]) -> None:
    sessions = group(rows)
    expected = sorted(rows, key=lambda row: (row["session_id"], row["turn"]))
    assert sessions.session_id.tolist() == sorted({row["session_id"] for row in rows})
    assert [CATALOG.names[action] for action in sessions.action] == [row["model"] for row in expected]
    assert sessions.cost_nusd.tolist() == [round(row["cost_usd"] * 1_000_000_000) for row in expected]
    assert sessions.embedding[:, 0].tolist() == [row["embedding"][0] for row in expected]
    judged = [row["quality"] is not None for row in expected]
    assert np.isfinite(sessions.quality).tolist() == judged
    for turn, row in enumerate(expected):
        measured = {outcome["model"]: outcome["cost_usd"] for outcome in row["outcomes"] or ()}
        measured.setdefault(row["model"], row["cost_usd"])
        costs = [round(measured[name] * 10**9) if name in measured else NOT_MEASURED_NUSD for name in CATALOG.names]
        assert sessions.outcome_cost_nusd[turn].tolist() == costs


def test_a_turn_that_was_not_judged_is_nan_and_never_0() -> None:
    sessions = group([row("s", 0, quality=None), row("s", 1, quality=0.0), row("s", 2, quality=1.0)])
    assert np.isnan(sessions.quality[0])
    assert sessions.quality[1:].tolist() == [0.0, 1.0]
    assert sessions.cost_nusd.tolist() == [1_000_000] * 3


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(CATALOG.names), st.integers(0, 200_000), st.integers(0, 20_000))
def test_cost_from_tokens_is_the_catalog_price_exactly(model: str, prompt: int, completion: int) -> None:
    tokens = {"cost_usd": None, "prompt_tokens": prompt, "completion_tokens": completion}
    spec = CATALOG.models[CATALOG.action(model)]
    per_million = Decimal(str(spec.usd_per_m_input)) * prompt + Decimal(str(spec.usd_per_m_output)) * completion
    nusd = per_million * 1000  # every price here is a whole number of nano-dollars a token
    assert group([row("s", 0, model=model, **tokens)]).cost_nusd.tolist() == [int(nusd)]


def test_a_given_cost_wins_over_tokens() -> None:
    sessions = group([row("s", 0, cost_usd=0.5, prompt_tokens=1, completion_tokens=1)])
    assert sessions.cost_nusd.tolist() == [500_000_000]


def test_groups_default_to_the_session() -> None:
    rows = [row("s", 0), row("s", 1, group_id="seed"), row("t", 0, group_id="")]
    assert group(rows).group_id.tolist() == ["s", "seed", "t"]


def test_the_logged_answer_is_an_outcome_and_nothing_is_measured_without_the_column() -> None:
    large = {"model": "large", "quality": None, "cost_usd": 0.5}
    sessions = group([row("s", 0, outcomes=[large]), row("s", 1, quality=None, outcomes=[])])
    assert sessions.outcome_cost_nusd.tolist() == [[1_000_000, -1, 500_000_000], [1_000_000, -1, -1]]
    np.testing.assert_array_equal(sessions.outcome_quality, [[1.0, np.nan, np.nan], [np.nan] * 3])
    assert (group([row("s", 0)]).outcome_cost_nusd == NOT_MEASURED_NUSD).all()


def test_outcomes_outside_a_sub_pool_are_left_out_and_actions_follow_its_order() -> None:
    every = [{"model": name, "quality": 0.5, "cost_usd": 0.25} for name in CATALOG.names]
    table = table_of([row("s", 0, outcomes=every)])
    assert check_rows(table, CATALOG, models=("large", "small")) == []
    sessions = build_sessions(table, CATALOG.select(("large", "small")), "wordllama", np.ones((1, 2)))
    assert sessions.action.tolist() == [1]
    assert sessions.outcome_cost_nusd.tolist() == [[250_000_000] * 2]


def _outcome(**fields: Any) -> Row:
    return {"outcomes": [{"model": "small", "quality": 1.0, "cost_usd": 0.1, **fields}]}


TWICE = {"outcomes": [*_outcome()["outcomes"], *_outcome()["outcomes"]]}
BAD_FIELDS: list[tuple[Row, str]] = [
    ({"session_id": ""}, "session_id is missing"),
    ({"session_id": None}, "session_id is missing"),
    ({"turn": None}, "turn is missing"),
    ({"turn": -1}, "turn must be >= 0, got -1"),
    ({"turn": 0}, "duplicate turn"),
    ({"embedding": None}, "embedding is missing"),
    ({"embedding": []}, "embedding must have 2 numbers"),
    ({"embedding": [1.0, 2.0, 3.0]}, "embedding must have 2 numbers as in most rows, got 3"),
    ({"embedding": [1.0, float("inf")]}, "embedding must be finite"),
    ({"embedding": [float("nan"), 1.0]}, "embedding must be finite"),
    ({"embedding": [None, 1.0]}, "embedding must be finite"),
    ({"model": None}, "model is missing"),
    ({"model": "huge\nx"}, r"model must be in the catalog \(add it .*, got 'huge\\nx'"),
    ({"quality": float("nan")}, r"quality must be in \[0, 1\].*, got nan"),
    ({"quality": 1.5}, r"quality must be in \[0, 1\].*, got 1.5"),
    ({"quality": -0.5}, r"quality must be in \[0, 1\].*, got -0.5"),
    ({"cost_usd": -0.1}, "cost_usd must be in .*, got -0.1"),
    ({"cost_usd": float("nan")}, "cost_usd must be in .*, got nan"),
    ({"cost_usd": float("inf")}, "cost_usd must be in .*, got inf"),
    ({"cost_usd": None}, "no cost"),
    ({"cost_usd": None, "prompt_tokens": 5}, "no cost"),
    ({"prompt_tokens": -5}, "prompt_tokens must be >= 0, got -5"),
    ({"propensity": 0.0}, r"propensity must be in \(0, 1\].*, got 0.0"),
    ({"propensity": 1.01}, r"propensity must be in \(0, 1\].*, got 1.01"),
    ({"propensity": float("nan")}, r"propensity must be in \(0, 1\].*, got nan"),
    ({"propensity": 1e-60}, r"propensity must be in \(0, 1\]"),
    ({"part": "train"}, "part must be fit, tune, test or null, got 'train'"),
    ({"part": "test"}, r"a session must be in one part, got \('', 'test'\)"),
    (_outcome(model="huge"), "outcomes: model must be in the catalog, got 'huge'"),
    (_outcome(model=None), "outcomes: model must be in the catalog, got None"),
    (_outcome(quality=1.5), r"outcomes: quality must be in \[0, 1\] or null, got 1.5"),
    (_outcome(quality=float("nan")), "outcomes: quality must be .*, got nan"),
    (_outcome(cost_usd=-1.0), "outcomes: cost_usd must be .*, got -1.0"),
    (_outcome(cost_usd=None), "outcomes: every outcome needs cost_usd, got 'small'"),
    (TWICE, "outcomes: a model may be there once, got 'small'"),
    ({"outcomes": [None]}, "outcomes: model must be in the catalog, got None"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS, ids=lambda value: repr(value)[:40])
def test_one_bad_field_makes_its_session_bad_and_no_other(fields: Row, words: str) -> None:
    rows = [row(session, turn) for session in ("good", "bad", "other") for turn in range(3)]
    rows[4] |= fields
    found = {bad.row: bad.reason for bad in check_rows(table_of(rows), CATALOG, Origin.of_rows("logs", len(rows)))}
    assert re.search(words, found[4])
    assert "\n" not in found[4]
    assert set(found) == {3, 4, 5}
    if fields.get("session_id", True):
        assert {found[3], found[5]} == {"session has a bad row: logs:5"}
    else:  # whose row it is nobody knows, but its session has a gap
        assert found[3] == "session has a bad row: logs:6"
        assert "gap in turns" in found[5]


def test_a_gap_is_told_at_the_turn_after_it() -> None:
    rows = [row("s", 0), row("s", 3), row("s", 2), row("one-based", 1), row("one-based", 2)]
    reasons = [bad.reason for bad in check_rows(table_of(rows), CATALOG)]
    gap = "gap in turns: those of a session must be 0..T-1, got "
    assert reasons == [
        "session has a bad row: table:3",
        "session has a bad row: table:3",
        f"{gap}'2 where 1 is missing'",
        f"{gap}'1 where 0 is missing'",
        "session has a bad row: table:4",
    ]


def test_a_group_in_two_parts_costs_the_sessions_of_the_second_part() -> None:
    rows = [
        row("a", 0, part="fit", group_id="g"),
        row("b", 0, part="test"),
        row("b", 1, part="test", group_id="g"),
        row("c", 0, part="test", group_id="h"),
    ]
    found = {bad.row: bad.reason for bad in check_rows(table_of(rows), CATALOG)}
    assert found == {
        1: "session has a bad row: table:3",
        2: "a group_id must be in one part, got ('fit', 'test')",
    }


@pytest.mark.parametrize("name", ["session_id", "group_id"])
def test_ids_that_numpy_could_not_keep_apart_are_refused(name: str) -> None:
    rows = [
        {**row(f"s{at}", 0), **({name: value} if value else {})} for at, value in enumerate(["", "a\0", "b" * 1025])
    ]
    assert [(bad.row, bad.reason) for bad in check_rows(table_of(rows), CATALOG)] == [
        (1, f"{name} must not hold the character NUL"),
        (2, f"{name} must have at most 1024 characters, got 1025"),
    ]


def test_rules_over_all_the_logs_hold_in_a_table_of_some_sessions() -> None:
    rows = [row("a", 0, part="test", group_id="g"), row("b", 0, part="test"), row("c", 0, part="fit", group_id="g")]
    whole, some = table_of(rows), table_of(rows[:2])
    [bad] = check_rows(whole, CATALOG)
    assert check_rows(some, CATALOG) == []
    assert check_rows(some, CATALOG, elsewhere=Elsewhere(home_of_group={"g": "fit"})) == [bad]
    assert bad.reason == "a group_id must be in one part, got ('fit', 'test')"
    width = [bad.reason for bad in check_rows(some, CATALOG, elsewhere=Elsewhere(embedding_width=3))]
    assert width == ["embedding must have 3 numbers as in most rows, got 2"] * 2


@pytest.mark.parametrize("swap", [False, True])
def test_which_part_is_a_groups_own_does_not_depend_on_the_order_of_rows(swap: bool) -> None:
    rows = [row("a", 0, part="fit", group_id="g"), row("b", 0, part="test", group_id="g")]
    [bad] = check_rows(table_of(rows[::-1] if swap else rows), CATALOG)
    assert (bad.row, bad.reason) == (0 if swap else 1, "a group_id must be in one part, got ('fit', 'test')")


def test_the_rows_own_quality_counts_where_outcomes_repeat_its_model() -> None:
    again = [{"model": "small", "quality": 0.25, "cost_usd": 0.5}]
    sessions = group([row("s", 0, outcomes=again), row("s", 1, quality=None, outcomes=again)])
    assert sessions.outcome_quality[:, 0].tolist() == [1.0, 0.25]
    assert sessions.outcome_cost_nusd[:, 0].tolist() == [500_000_000] * 2


def test_a_sub_pool_refuses_other_logged_models() -> None:
    [bad] = check_rows(table_of([row("s", 0)]), CATALOG, models=("large", "middle"))
    assert bad.reason == "model must be among the chosen models (large, middle), got 'small'"


@settings(deadline=None)  # the machine may be busy
@given(clean_rows(), st.data())
def test_an_unknown_model_in_a_row_makes_exactly_its_session_bad(rows: list[Row], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at]["model"] = "unheard-of"
    bad = check_rows(table_of(rows), CATALOG)
    same_session = [index for index, other in enumerate(rows) if other["session_id"] == rows[at]["session_id"]]
    assert [row.row for row in bad] == same_session
    assert [row.row for row in bad if not row.is_spoiled] == [at]


WRONG_TABLES: list[tuple[Row, str]] = [
    ({"model": pa.nulls(1, pa.string())}, "logs: no row has model"),
    ({"embedding": None}, "logs: no row has embedding or text"),
    ({"cost_usd": None, "prompt_tokens": pa.array([1])}, r"no row has cost_usd or prompt_tokens \+ completion_tokens"),
    ({"session_id": pa.array([1])}, "column 'session_id' must be string, got int64"),
    ({"quality": pa.array(["good"])}, "column 'quality' must be double, got string"),
    ({"turn": pa.array([0.5])}, "column 'turn' must be int64, got double"),
    ({"turn": pa.array([True])}, "column 'turn' must be int64, got bool"),
    ({"embedding": pa.array([["1"]])}, "column 'embedding' must be list<.*>, got list<.*string>"),
    ({"outcomes": pa.array([[{"model": "small"}]])}, "column 'outcomes' must be list<.*>, got "),
]


@pytest.mark.parametrize(("columns", "words"), WRONG_TABLES, ids=lambda value: repr(value)[:40])
def test_a_wrong_column_is_named_in_one_line(columns: Row, words: str) -> None:
    good = pa.Table.from_pylist([row("s", 0)], LOG_SCHEMA)
    given_columns = {name: good[name] for name in good.column_names} | columns
    with pytest.raises(DataError, match=words) as caught:
        conformed(pa.table({name: column for name, column in given_columns.items() if column is not None}))
    assert "\n" not in str(caught.value)


def test_other_widths_and_layouts_of_a_type_are_the_same_rows() -> None:
    rows = [row("s", 0, outcomes=[{"model": "large", "quality": 1.0, "cost_usd": 0.5}]), row("s", 1)]
    plain = pa.Table.from_pylist(rows, LOG_SCHEMA)
    layouts = {
        "session_id": plain["session_id"].cast(pa.large_string()),
        "turn": plain["turn"].cast(pa.int8()),
        "embedding": pa.array([[3.0, 4.0]] * 2, pa.list_(pa.float16(), 2)),
        "model": plain["model"].combine_chunks().dictionary_encode(),
        "quality": plain["quality"].cast(pa.float32()),
        "cost_usd": plain["cost_usd"],
        "outcomes": pa.array(
            [[{"cost_usd": 0.5, "judge": "x", "quality": 1, "model": "large"}], None],
        ),
        "more": pa.array([1, 2]),
    }
    assert conformed(pa.table(layouts)).equals(conformed(plain))
