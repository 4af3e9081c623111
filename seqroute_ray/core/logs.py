"""Which log rows break the log schema, and why: all rules at once, column by column."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.log_schema import (
    MAX_TURN_COST_USD,
    PARTS,
    actions,
    codes,
    group_key,
    numbers,
    outcome_cells,
    turn_cost_usd,
)

NAMELESS = "session_id is missing; every turn names its session"
MAX_ID_LENGTH = 1024
_SPOILED = "session has a bad row: "
_COST_RULE = f"cost_usd must be in [0, {MAX_TURN_COST_USD:.0f}]"
_MODEL_RULE = "model must be in the catalog (add it or an alias, or its price by --price MODEL=INPUT/OUTPUT)"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and the rule that it breaks."""

    row: int  # position in the table, from 0
    reason: str

    @property
    def is_spoiled(self) -> bool:
        """True when nothing is wrong with the row but another one of its session is bad."""
        return self.reason.startswith(_SPOILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the rows of a table come from."""

    file: NDArray[np.object_]  # [N] names
    line: IntArray  # [N] from 1
    broken: Mapping[int, str] = field(default_factory=dict)  # reasons by row that reading the file found already

    @classmethod
    def of_rows(cls, file: str, num_rows: int) -> "Origin":
        """One file without lines: rows are numbered from 1."""
        return cls(file=np.full(num_rows, file, dtype=object), line=np.arange(1, num_rows + 1))

    def place(self, row: int) -> str:
        """FILE:LINE of a row."""
        return f"{self.file[row]}:{self.line[row]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What the rows of other tables tell, where a table holds only some sessions of the logs."""

    embedding_width: int | None = None  # of most rows; None: as this table's rows tell
    home_of_group: Mapping[str, str] = field(default_factory=dict)  # the part of groups whose rows name several


@dataclass(frozen=True, slots=True)
class _Rule:
    broken_by: BoolArray | IntArray  # [N] mask or row numbers
    reason: str
    got: Callable[[int], object] | None = None  # the value that breaks it, of a row number

    def reason_of(self, row: int) -> str:
        return self.reason if self.got is None else f"{self.reason}, got {self.got(row)!r}"


def _at(values: NDArray[Any]) -> Callable[[int], object]:
    """A rule's `got` out of [N] values."""
    return lambda row: values[row].item()


def check_rows(
    table: pa.Table,
    catalog: Catalog,
    origin: Origin | None = None,
    models: tuple[str, ...] = (),
    elsewhere: Elsewhere = Elsewhere(),
) -> list[BadRow]:
    """The rows that cannot be used, in order, each with one reason; none for clean logs.

    table: all rows of some sessions, columns as of log_schema.conform. models: the sub-pool that logged models must be
    in; () is the whole catalog. One bad row makes its whole session bad: the others get the reason "session has a bad
    row: FILE:LINE".
    """
    origin = origin or Origin.of_rows("table", table.num_rows)
    reasons = dict(origin.broken)
    session, _ = codes(table["session_id"])
    for rule in _row_rules(table, catalog, models, session, elsewhere):
        _collect(reasons, rule)
    whole = (session >= 0) & ~np.isin(session, session[np.fromiter(reasons, dtype=np.int64)])
    for rule in _sequence_rules(session, numbers(table["turn"]).value.astype(np.int64), whole):
        _collect(reasons, rule)
    _spread(reasons, session, origin)
    return [BadRow(row, reasons[row]) for row in sorted(reasons)]


def _collect(reasons: dict[int, str], rule: _Rule) -> None:
    """Add the rule's rows; the first reason of a row stays."""
    rows = np.flatnonzero(rule.broken_by) if rule.broken_by.dtype == np.bool_ else rule.broken_by
    for row in rows.tolist():
        if row not in reasons:
            reasons[row] = rule.reason_of(row)


def _spread(reasons: dict[int, str], session: IntArray, origin: Origin) -> None:
    """Give every other row of a bad row's session the reason that names the first such row."""
    # -1, no session, may be among them: such rows are all in `reasons` already
    first_bad = {int(session[row]): row for row in sorted(reasons, reverse=True)}
    for row in np.flatnonzero(np.isin(session, list(first_bad))).tolist():
        if row not in reasons:
            reasons[row] = _SPOILED + origin.place(first_bad[int(session[row])])


def _row_rules(
    table: pa.Table, catalog: Catalog, models: tuple[str, ...], session: IntArray, elsewhere: Elsewhere
) -> Iterator[_Rule]:
    yield from _identity_rules(table)
    yield from _query_rules(table, elsewhere.embedding_width)
    yield from _model_rules(table, catalog, models)
    yield from _number_rules(table)
    yield from _cost_rules(table, catalog)
    yield from _part_rules(table, session, elsewhere.home_of_group)
    if "outcomes" in table.column_names:
        yield from _outcome_rules(table, catalog)


def _identity_rules(table: pa.Table) -> Iterator[_Rule]:
    yield _Rule(np.asarray(pc.is_null(table["session_id"])), NAMELESS)
    for name in ("session_id", "group_id"):  # numpy cuts NUL at the end, and holds every text as wide as the widest
        lengths = np.asarray(pc.fill_null(pc.utf8_length(table[name]), 0), dtype=np.int64)
        yield _Rule(lengths > MAX_ID_LENGTH, f"{name} must have at most {MAX_ID_LENGTH} characters", _at(lengths))
        has_nul = np.asarray(pc.fill_null(pc.match_substring(table[name], "\0"), False))
        yield _Rule(has_nul, f"{name} must not hold the character NUL")
    turn = numbers(table["turn"])
    yield _Rule(~turn.known, "turn is missing; turns of a session are numbered from 0")
    yield _Rule(turn.value < 0, "turn must be >= 0", _at(turn.value.astype(np.int64)))


def _query_rules(table: pa.Table, width: int | None) -> Iterator[_Rule]:
    if "embedding" not in table.column_names:
        yield _Rule(np.asarray(pc.is_null(table["text"])), "text is missing; a row needs text or an embedding")
        return
    lists = table["embedding"].combine_chunks()
    lengths = embedding_widths(table)
    width = width or most_frequent_width(np.bincount(lengths))
    yield _Rule(np.asarray(pc.is_null(lists)), "embedding is missing; every row of these logs needs one")
    yield _Rule(lengths != width, f"embedding must have {width} numbers as in most rows", _at(lengths))
    finite = np.isfinite(lists.flatten().to_numpy(zero_copy_only=False))
    in_row = np.array([], dtype=np.int64) if finite.all() else np.repeat(np.arange(len(lists)), lengths)[~finite]
    yield _Rule(np.unique(in_row), "embedding must be finite, got NaN, infinity or null in it")


def embedding_widths(table: pa.Table) -> IntArray:
    """[N] numbers in each row's embedding; 0 for null."""
    return np.asarray(pc.fill_null(pc.list_value_length(table["embedding"].combine_chunks()), 0), dtype=np.int64)


def most_frequent_width(counts: IntArray) -> int:
    """The width above 0 that most rows have, the smallest of equals; counts: [W] rows of each width from 0."""
    return 1 + int(np.append(counts[1:], 0).argmax())


def _model_rules(table: pa.Table, catalog: Catalog, models: tuple[str, ...]) -> Iterator[_Rule]:
    model, action = table["model"].combine_chunks(), actions(table["model"], catalog)

    def name(row: int) -> object:
        return model[row].as_py()

    yield _Rule(np.asarray(pc.is_null(model)), "model is missing; every turn names the model that answered")
    yield _Rule(action < 0, _MODEL_RULE, name)
    if models:
        outside = ~np.isin(action, [catalog.action(name) for name in models])
        yield _Rule(outside, f"model must be among the chosen models ({', '.join(models)})", name)


def _number_rules(table: pa.Table) -> Iterator[_Rule]:
    quality, propensity = numbers(table["quality"]), numbers(table["propensity"])
    bad = quality.known & ~_in_unit_range(quality.value)
    yield _Rule(bad, "quality must be in [0, 1], or null for a turn that was not judged", _at(quality.value))
    above_zero = propensity.value.astype(np.float32) > 0  # as it is stored
    bad = propensity.known & ~(above_zero & (propensity.value <= 1))
    yield _Rule(bad, "propensity must be in (0, 1], or null where it is unknown", _at(propensity.value))


def _in_unit_range(values: NDArray[np.float64]) -> BoolArray:
    return (values >= 0) & (values <= 1)  # False for NaN


def _is_cost(cost_usd: FloatArray) -> BoolArray:
    return (cost_usd >= 0) & (cost_usd <= MAX_TURN_COST_USD)  # False for NaN


def _cost_rules(table: pa.Table, catalog: Catalog) -> Iterator[_Rule]:
    for name in ("prompt_tokens", "completion_tokens"):
        tokens = numbers(table[name]).value.astype(np.int64)
        yield _Rule(tokens < 0, f"{name} must be >= 0", _at(tokens))
    cost_usd = turn_cost_usd(table, catalog)
    given = numbers(table["cost_usd"]).known | ~np.isnan(cost_usd)
    yield _Rule(~given, "no cost: a row needs cost_usd, or prompt_tokens and completion_tokens")
    yield _Rule(~_is_cost(cost_usd), _COST_RULE, _at(cost_usd))


def _part_rules(table: pa.Table, session: IntArray, home_of_group: Mapping[str, str]) -> Iterator[_Rule]:
    index, unsorted = codes(pc.fill_null(table["part"], ""))
    names = sorted({*unsorted, *home_of_group.values()})  # which one is the home does not depend on the order of rows
    rank = {name: position for position, name in enumerate(names)}
    part = np.array([rank[name] for name in unsorted], dtype=np.int64)[index]
    unknown = ~np.isin(part, [code for code, name in enumerate(names) if name in ("", *PARTS)])
    yield _Rule(unknown, "part must be fit, tune, test or null", lambda row: names[part[row]])
    group, group_names = codes(group_key(table))
    last = len(names)  # behind every part
    at_home = [rank[home_of_group[name]] if name in home_of_group else last for name in group_names]
    for what, key, homes in (
        ("session", session, [last] * (session.max(initial=-1) + 1)),
        ("group_id", group, at_home),
    ):
        home = np.array([*homes, last])  # the last one of no key
        np.minimum.at(home, key, part)
        home = home[key]
        yield _Rule((key >= 0) & (part != home), f"a {what} must be in one part", _both(names, home, part))


def _both(names: list[str], home: IntArray, part: IntArray) -> Callable[[int], object]:
    return lambda row: (names[home[row]], names[part[row]])


def _outcome_rules(table: pa.Table, catalog: Catalog) -> Iterator[_Rule]:
    cells = outcome_cells(table, catalog)

    def rule(bad: BoolArray, reason: str, got: Callable[[int], object]) -> _Rule:
        """A rule on cells as one on rows; the reason is of the row's first bad cell."""
        rows, first = np.unique(cells.row[bad], return_index=True)
        cell_of = dict(zip(rows.tolist(), np.flatnonzero(bad)[first].tolist(), strict=True))
        return _Rule(rows, f"outcomes: {reason}", lambda row: got(cell_of[row]))

    def model(cell: int) -> object:
        return cells.model[cell].as_py()

    yield rule(cells.action < 0, "model must be in the catalog", model)
    yield rule(_repeated(cells.row * (len(catalog) + 1) + cells.action + 1), "a model may be there once", model)
    bad = cells.quality.known & ~_in_unit_range(cells.quality.value)
    yield rule(bad, "quality must be in [0, 1] or null", _at(cells.quality.value))
    yield rule(~cells.cost_usd.known, "every outcome needs cost_usd", model)
    yield rule(~_is_cost(cells.cost_usd.value), _COST_RULE, _at(cells.cost_usd.value))


def _repeated(key: IntArray) -> BoolArray:
    """[N] True where an earlier key is the same."""
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(key), dtype=np.bool_)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    return repeated


def _sequence_rules(session: IntArray, turn: IntArray, among: BoolArray) -> Iterator[_Rule]:
    """The first row of each session that breaks the count 0..T-1, among the rows of a mask."""
    order = np.flatnonzero(among)
    order = order[np.lexsort((turn[order], session[order]))]
    _, first, code = np.unique(session[order], return_index=True, return_inverse=True)
    expected = np.zeros_like(turn)
    expected[order] = np.arange(len(order)) - first[code]
    wrong = order[turn[order] != expected[order]]
    wrong = wrong[np.unique(session[wrong], return_index=True)[1]]
    twice = turn[wrong] < expected[wrong]  # sorted: the row before has the same number
    yield _Rule(wrong[twice], "duplicate turn: a session has one row a turn", _at(turn))

    def skipped(row: int) -> object:
        return f"{turn[row]} where {expected[row]} is missing"

    yield _Rule(wrong[~twice], "gap in turns: those of a session must be 0..T-1", skipped)
