"""What is known of a query before it is answered, and what the features make of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.embedding import unit_rows
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.queries import (
    MAX_LENGTH,
    MIN_GROUPS_PER_TYPE,
    UNKNOWN_TYPE,
    Queries,
    QueryFeatures,
    common_types,
    log_known_tokens,
)
from tests.support import DIMS, TYPES, make_features, make_queries

BY_HAND = QueryFeatures(  # on a 1-d embedding z: sigmoid(z) of "chat", sigmoid(0) = 1/2 of "maths"
    types=np.array(["chat", "maths"]),
    type_weights=np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32),
    log_tokens=np.array([np.log(100), np.log(10)], dtype=np.float32),
)


def design_of(features: QueryFeatures, queries: Queries) -> np.ndarray:
    return features.design(queries, features.summary(queries))


def each_its_own(queries: Queries) -> np.ndarray:
    """Group ids of queries that have nothing to do with each other."""
    return np.arange(len(queries)).astype(np.str_)


def three_kinds(num_queries: int, seed: int) -> tuple[Queries, np.ndarray]:
    """Queries around three directions, a third of them without a name, and their true types."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=num_queries)
    embedding = unit_rows(4 * np.eye(3, 8)[kind] + rng.normal(size=(num_queries, 8)))
    truth = np.array(["a", "b", "c"])[kind]
    named = np.where(rng.random(num_queries) < 2 / 3, truth, UNKNOWN_TYPE)
    prompt_tokens = rng.integers(100, 1000, size=num_queries) * (rng.random(num_queries) < 0.9)
    return Queries(embedding, named, prompt_tokens), truth


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_named_type_has_the_whole_share_and_others_share_one(num_queries: int, seed: int) -> None:
    queries = make_queries(num_queries, seed)
    share = make_features(seed).summary(queries)[:, :-1]
    np.testing.assert_allclose(share.sum(axis=1), 1, rtol=1e-5)
    assert (share >= 0).all()
    named = queries.task_type != UNKNOWN_TYPE
    np.testing.assert_array_equal(share[named], queries.task_type[named][:, None] == np.array(TYPES))
    assert ((share[~named] > 0) & (share[~named] < 1)).all()


def test_the_features_worked_by_hand() -> None:
    chat = 1 / (1 + 1 / np.e)  # against 1/2
    queries = Queries(
        embedding=np.array([[0.0], [1.0], [1.0], [1.0]], dtype=np.float16),
        task_type=np.array(["", "", "maths", "poetry"]),  # poetry is a name that nobody knows
        prompt_tokens=np.array([0, 100, 1, 10_000]),
    )
    share = np.array([[1 / 2, 1 / 2], [chat / (chat + 0.5), 0.5 / (chat + 0.5)], [0, 1], [0, 0]])
    share[3] = share[1]
    length = np.array([[0.0], [0.0], [-2.0], [2.0]])
    np.testing.assert_allclose(BY_HAND.summary(queries), np.concatenate([share, length], axis=1), atol=1e-6)
    design = np.concatenate([share, share * length, queries.embedding], axis=1)
    np.testing.assert_allclose(design_of(BY_HAND, queries), design, atol=1e-6)
    assert BY_HAND.penalty(1.0, 2.0, 3.0).tolist() == [1, 1, 2, 2, 3]
    assert (BY_HAND.num_types, BY_HAND.num_dims, BY_HAND.summary_width) == (2, 1, 3)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.data())
def test_a_query_is_summarised_the_same_in_any_company(num_queries: int, seed: int, data: st.DataObject) -> None:
    queries, features = make_queries(num_queries, seed), make_features()
    rows = np.array(data.draw(st.lists(st.integers(0, num_queries - 1), min_size=1)))
    assert len(queries.take(rows)) == len(rows)
    np.testing.assert_allclose(design_of(features, queries.take(rows)), design_of(features, queries)[rows], rtol=1e-5)


def test_the_embedding_tells_the_type_of_a_query_that_names_none() -> None:
    seen, _ = three_kinds(900, seed=0)
    features = QueryFeatures.fit(seen, common_types(seen, each_its_own(seen)))
    assert features.types.tolist() == ["a", "b", "c"]
    fresh, truth = three_kinds(600, seed=1)
    unnamed = Queries(fresh.embedding, np.full(600, UNKNOWN_TYPE), fresh.prompt_tokens)
    share = features.summary(unnamed)[:, :-1]
    assert (features.types[share.argmax(axis=1)] == truth).mean() > 0.95
    likeliest = share.max(axis=1)
    hits = (features.types[share.argmax(axis=1)] == truth)[likeliest < 0.9].mean()
    assert likeliest[likeliest < 0.9].mean() == pytest.approx(hits, abs=0.15)  # and how sure it is


def test_the_lengths_of_the_training_queries_are_standardised() -> None:
    seen, _ = three_kinds(900, seed=0)
    length = QueryFeatures.fit(seen, common_types(seen, each_its_own(seen))).summary(seen)[:, -1]
    known = seen.prompt_tokens > 0
    assert (~known).any()
    assert (length[~known] == 0).all()
    assert length[known].mean() == pytest.approx(0, abs=1e-5)
    assert length[known].std() == pytest.approx(1, abs=1e-5)
    assert np.abs(length).max() < MAX_LENGTH


@pytest.mark.parametrize("logged", [0, 300], ids=["not logged", "all the same"])
def test_lengths_that_did_not_vary_say_nothing_of_a_later_query(logged: int) -> None:
    embedding = make_queries(60).embedding
    seen = Queries(embedding, np.full(60, UNKNOWN_TYPE), np.full(60, logged))
    later = Queries(embedding, seen.task_type, np.full(60, 5000))
    assert (QueryFeatures.fit(seen, common_types(seen, each_its_own(seen))).summary(later)[:, -1] == 0).all()


def test_a_length_beyond_all_experience_counts_as_an_extreme_one() -> None:
    tokens = np.array([1, 10**6, 10**9])
    queries = Queries(np.zeros((3, DIMS)), np.full(3, UNKNOWN_TYPE), tokens)
    assert make_features().summary(queries)[:, -1].tolist() == [-MAX_LENGTH, MAX_LENGTH, MAX_LENGTH]


def of_types(counts: dict[str, int]) -> Queries:
    """So many queries of each type."""
    names = np.repeat(list(counts), list(counts.values()))
    return Queries(np.zeros((len(names), 2)), names, np.zeros(len(names), dtype=np.int64))


def test_types_are_told_apart_that_are_named_often_enough() -> None:
    queries = of_types({"rare": MIN_GROUPS_PER_TYPE - 1, "often": MIN_GROUPS_PER_TYPE, "more": 99, UNKNOWN_TYPE: 200})
    assert common_types(queries, each_its_own(queries)).tolist() == ["more", "often"]


def test_a_type_that_is_repeated_in_one_group_only_is_not_common() -> None:
    queries = of_types({"parrot": 500, "often": MIN_GROUPS_PER_TYPE, "almost": 500})
    group = each_its_own(queries)
    group[queries.task_type == "parrot"] = "one"
    almost = np.flatnonzero(queries.task_type == "almost")
    group[almost] = np.char.add("a", (np.arange(500) % (MIN_GROUPS_PER_TYPE - 1)).astype(np.str_))
    assert common_types(queries, group).tolist() == ["often"]
    group[almost[0]] = "one more"
    assert common_types(queries, group).tolist() == ["almost", "often"]


def test_a_group_counts_for_each_type_that_occurs_in_it() -> None:
    queries = of_types({"a": MIN_GROUPS_PER_TYPE, "b": MIN_GROUPS_PER_TYPE})
    group = np.tile(np.arange(MIN_GROUPS_PER_TYPE).astype(np.str_), 2)
    assert common_types(queries, group).tolist() == ["a", "b"]


def with_lengths(prompt_tokens: list[int]) -> Queries:
    num_queries = len(prompt_tokens)
    return Queries(np.zeros((num_queries, 2)), np.full(num_queries, UNKNOWN_TYPE), np.array(prompt_tokens))


def test_unknown_lengths_have_no_logarithm() -> None:
    np.testing.assert_allclose(log_known_tokens(with_lengths([0, 1, 100, 0])), [0, np.log(100)])
    assert log_known_tokens(with_lengths([0, 0])).tolist() == [0]
    assert log_known_tokens(with_lengths([])).tolist() == [0]


def test_known_prompts_are_billed_as_they_are_and_unknown_ones_as_typical() -> None:
    features = QueryFeatures.fit(with_lengths([0, 10, 1000, 0]), np.array([], dtype=np.str_))
    typical = 100 * np.exp(np.log(10) ** 2 / 2)  # the mean of a log-normal count, not its median
    np.testing.assert_allclose(features.billed_tokens(with_lengths([0, 7, 10**6])), [typical, 7, 10**6], rtol=1e-6)


def test_one_length_in_all_the_logs_is_typical_too() -> None:
    features = QueryFeatures.fit(with_lengths([300, 300, 0]), np.array([], dtype=np.str_))
    np.testing.assert_allclose(features.billed_tokens(with_lengths([0, 5])), [300, 5], rtol=1e-6)


def test_no_prompt_is_billed_where_the_logs_had_none() -> None:
    features = QueryFeatures.fit(with_lengths([0, 0]), np.array([], dtype=np.str_))
    assert features.billed_tokens(with_lengths([0, 7, 10**6])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("types", [[], ["a"]])
def test_fewer_than_two_types_are_one_without_a_name(types: list[str]) -> None:
    seen, _ = three_kinds(90, seed=0)
    features = QueryFeatures.fit(seen, np.array(types, dtype=np.str_))
    assert features.types.tolist() == [UNKNOWN_TYPE]
    assert (features.summary(seen)[:, :-1] == 1).all()
    assert features.summary_width == 2


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (4,), (1, 4, 1)])
def test_an_embedding_of_another_dimension_is_refused(shape: tuple[int, ...]) -> None:
    queries = Queries(np.zeros(shape), np.full(shape[0], UNKNOWN_TYPE), np.zeros(shape[0], dtype=np.int64))
    with pytest.raises(DataError, match=f"the estimator was fitted on {DIMS}-d embeddings, got shape"):
        make_features().summary(queries)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 100))
def test_features_survive_the_way_to_arrays_and_back(seed: int) -> None:
    features, queries = make_features(seed), make_queries(5, seed)
    again = QueryFeatures.from_arrays(features.arrays())
    np.testing.assert_array_equal(design_of(again, queries), design_of(features, queries), strict=True)
