import json
from dataclasses import fields
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.catalog import Catalog, ModelSpec
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import (
    NOT_MEASURED_NUSD,
    Sessions,
    from_table,
    read_sessions,
    to_table,
    write_sessions,
)
from tests.support import make_sessions

CATALOG = Catalog(tuple(ModelSpec(name=name, usd_per_m_input=1.0, usd_per_m_output=2.0) for name in ("a", "b", "c")))
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@st.composite
def some_sessions(draw: st.DrawFn) -> Sessions:
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    lengths = draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    num_rows, rng = sum(lengths), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_rows, len(CATALOG))
    measured = rng.random(shape) < 0.5
    unjudged = rng.random(num_rows) < 0.3
    return Sessions(
        catalog=CATALOG,
        embedder="wordllama",
        session_id=np.array(ids, dtype=np.str_),
        part=np.array(draw(st.lists(st.sampled_from(["", "fit", "test"]), min_size=len(ids), max_size=len(ids)))),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        embedding=rng.normal(size=(num_rows, 4)).astype(np.float16),
        action=rng.integers(len(CATALOG), size=num_rows),
        quality=np.where(unjudged, np.nan, rng.random(num_rows)).astype(np.float32),
        cost_nusd=rng.integers(10**15, size=num_rows),
        prompt_tokens=draw(st.sampled_from([10, 10**4, 10**12])) * rng.integers(2, size=num_rows),
        propensity=np.where(unjudged, np.nan, rng.random(num_rows)).astype(np.float32),
        group_id=np.array(draw(st.lists(names, min_size=num_rows, max_size=num_rows)), dtype=np.str_),
        source=np.array(draw(st.lists(names, min_size=num_rows, max_size=num_rows)), dtype=np.str_),
        outcome_quality=np.where(measured, rng.random(shape), np.nan).astype(np.float32),
        outcome_cost_nusd=np.where(measured, rng.integers(10**15, size=shape), NOT_MEASURED_NUSD),
    )


def assert_same(ours: Sessions, theirs: Sessions) -> None:
    assert (ours.catalog, ours.embedder) == (theirs.catalog, theirs.embedder)
    for name in [field.name for field in fields(Sessions) if field.name not in ("catalog", "embedder")]:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert getattr(ours, name).dtype.kind == getattr(theirs, name).dtype.kind, name


@settings(deadline=None)  # the machine may be busy
@given(some_sessions())
def test_sessions_survive_the_way_to_a_table_and_back(sessions: Sessions) -> None:
    assert_same(from_table(to_table(sessions)), sessions)


@settings(deadline=None)  # the machine may be busy
@given(some_sessions())
def test_queries_are_what_is_known_of_turns_before_they_are_answered(sessions: Sessions) -> None:
    queries = sessions.queries
    assert len(queries) == len(sessions.action)
    for ours, theirs in (
        (queries.embedding, sessions.embedding),
        (queries.task_type, sessions.source),
        (queries.prompt_tokens, sessions.prompt_tokens),
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_of_an_earlier_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sessions.parquet"
    write_sessions(make_sessions([2]), path)
    table = pq.read_table(path)
    header = {**json.loads(table.schema.metadata[b"seqroute.sessions"]), "format_version": 1}
    pq.write_table(table.replace_schema_metadata({"seqroute.sessions": json.dumps(header)}), path)
    with pytest.raises(DataError, match="not a session file of format 2; make one with `seqroute import`"):
        read_sessions(path)


@settings(deadline=None)  # the machine may be busy
@given(some_sessions(), st.data())
def test_a_slice_of_the_table_is_those_sessions(sessions: Sessions, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, sessions.num_sessions - 1))
    part = to_table(sessions).slice(first)
    assert_same(from_table(part), sessions.take(np.arange(first, sessions.num_sessions)))


@settings(deadline=None)  # the machine may be busy
@given(some_sessions(), st.randoms(use_true_random=False))
def test_taking_a_permutation_and_its_inverse_changes_nothing(sessions: Sessions, random: Random) -> None:
    order = np.array(random.sample(range(sessions.num_sessions), sessions.num_sessions))
    taken = sessions.take(order)
    assert taken.session_id.tolist() == sessions.session_id[order].tolist()
    assert_same(taken.take(np.argsort(order)), sessions)


@settings(deadline=None)  # the machine may be busy
@given(some_sessions())
def test_turns_count_from_zero_in_each_session(sessions: Sessions) -> None:
    expected = [turn for length in sessions.num_turns.tolist() for turn in range(length)]
    assert sessions.turn.tolist() == expected


@settings(deadline=None)  # the machine may be busy
@given(some_sessions())
def test_of_part_keeps_exactly_the_sessions_of_the_part(sessions: Sessions) -> None:
    wanted = sessions.session_id[sessions.part == "fit"].tolist()
    if not any(sessions.part.tolist()):  # no session names a part: all are meant
        assert sessions.of_part("fit").session_id.tolist() == sessions.session_id.tolist()
    elif wanted:
        assert sessions.of_part("fit").session_id.tolist() == wanted
    else:
        with pytest.raises(DataError, match="no session of part 'fit'"):
            sessions.of_part("fit")


@settings(deadline=None)  # the machine may be busy
@given(sessions=some_sessions())
def test_row_groups_of_a_file_are_its_sessions(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sessions") / "sub" / "sessions.parquet"
    write_sessions(sessions, path)
    assert_same(read_sessions(path), sessions)
    assert_same(read_sessions(path, row_groups=[0]), sessions)


def test_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    foreign, truncated, whole = tmp_path / "foreign", tmp_path / "truncated", tmp_path / "whole"
    pq.write_table(pa.table({"action": [1]}), foreign)
    pq.write_table(pa.table({"action": [1]}), whole)
    truncated.write_bytes(whole.read_bytes()[:-6])
    cases = {
        tmp_path / "absent": "no such session file",
        foreign: "not a session file",
        truncated: "not a readable Parquet file",
    }
    for path, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            read_sessions(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
