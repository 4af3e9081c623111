"""Sessions of a round: parts by a hash, each session once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.errors import DataError
from seqroute_ray.core.sessions import Sessions, read_sessions, write_sessions
from seqroute_ray.retraining.sessions import holdout, join, with_parts
from tests.support import make_sessions


def unnamed(names: list[str], length: int = 2, seed: int = 0) -> Sessions:
    """Sessions without parts, each a group of its own."""
    sessions, ids = make_sessions([length] * len(names), seed=seed), np.array(names)
    return replace(sessions, session_id=ids, part=np.full(len(names), ""), group_id=np.repeat(ids, length))


def test_a_session_has_its_part_for_ever_and_shares_come_out() -> None:
    names = [f"session-{i}" for i in range(2000)]
    parts = dict(zip(names, with_parts(unnamed(names), 0.2).part.tolist(), strict=True))
    assert list(parts.values()).count("test") == pytest.approx(400, abs=60)
    few = with_parts(unnamed(names[::-7], length=3, seed=1), 0.2)
    assert few.part.tolist() == [parts[name] for name in few.session_id.tolist()]
    larger = with_parts(unnamed(names), 0.3)
    assert set(larger.session_id[larger.part == "test"].tolist()) > {n for n, part in parts.items() if part == "test"}


def test_sessions_of_one_group_are_on_one_side() -> None:
    sessions = unnamed([f"s{i}" for i in range(50)])
    together = with_parts(replace(sessions, group_id=np.full(100, "one question")), 0.5)
    assert len(set(together.part.tolist())) == 1


def test_a_session_that_comes_again_replaces_its_older_rows(tmp_path: Path) -> None:
    before, new, out = (tmp_path / f"{name}.parquet" for name in ("before", "new", "out"))
    write_sessions(with_parts(unnamed(["a", "b", "c"]), 0.5), before)
    write_sessions(unnamed(["b", "d"], length=4, seed=1), new)
    counts = join(before, new, 0.5, out)
    assert (counts["num_new_sessions"], counts["num_sessions"]) == (2, 4)
    joined = read_sessions(out)
    assert dict(zip(joined.session_id.tolist(), joined.num_turns.tolist(), strict=True)) == {
        "a": 2,
        "c": 2,
        "b": 4,
        "d": 4,
    }
    test = {name for name, part in zip(joined.session_id.tolist(), joined.part.tolist(), strict=True) if part == "test"}
    assert set(with_parts(read_sessions(new), 0.5).of_part("test").session_id.tolist()) == test & {"b", "d"}


def test_a_base_without_parts_is_never_in_the_holdout(tmp_path: Path) -> None:
    before, new, out = (tmp_path / f"{name}.parquet" for name in ("before", "new", "out"))
    write_sessions(unnamed([f"old-{i}" for i in range(20)]), before)
    write_sessions(unnamed([f"new-{i}" for i in range(20)]), new)
    join(before, new, 0.5, out)
    joined = read_sessions(out)
    assert set(joined.part[:20].tolist()) == {"fit"}
    assert all(name.startswith("new-") for name in holdout(new, 0.5).session_id.tolist())


def test_vectors_of_two_embedders_do_not_mix(tmp_path: Path) -> None:
    before, new = tmp_path / "before.parquet", tmp_path / "new.parquet"
    write_sessions(replace(unnamed(["a"]), embedder="another"), before)
    write_sessions(unnamed(["b"]), new)
    with pytest.raises(DataError, match="vectors of embedder 'another'"):
        join(before, new, 0.5, tmp_path / "out.parquet")
