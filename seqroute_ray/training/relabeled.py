"""A relabeled dataset as training batches: transitions join the turn table by row number, batch by batch.

The joined table is never made: the encoded states would be forty times the size of the transitions. On the disk, both
tables are copied once into files of fixed-width rows (`row_files.py`), which all learners of a machine share.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.core.dataset import Dataset, DatasetHeader, read_header, read_shards
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.estimator import Estimates
from seqroute_ray.core.hbr import Transitions
from seqroute_ray.core.mdp import NUM_AFTER, NUM_RISK, StateLayout, TurnFeatures, affordable, encode_state
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.storage import Location
from seqroute_ray.core.strata import NUM_STRATA, strata
from seqroute_ray.training.reader import ALLOWED, BANKRUPT, NEXT_ALLOWED, Batch
from seqroute_ray.training.row_files import RowFile, made_once

FORMAT_VERSION = 1  # of the row files
TRANSITION_ROW = np.dtype(
    [
        ("turn_row", "<i8"),
        ("remaining_nusd", "<i8"),
        ("cost_nusd", "<i8"),
        ("reward", "<f4"),
        ("turn", "<i2"),
        ("action", "<i2"),
        ("terminated", "?"),
        ("bankrupt", "?"),
    ]
)
TURNS, TRANSITIONS = "turns", "transitions"


class TurnTable(Protocol):
    """TurnFeatures, in memory or on the disk."""

    def __len__(self) -> int: ...

    def take(self, rows: IntArray) -> TurnFeatures: ...


class TransitionTable(Protocol):
    """Transitions, in memory or on the disk."""

    def __len__(self) -> int: ...

    def take(self, rows: IntArray) -> Transitions: ...


@dataclass(frozen=True)
class RelabeledData:
    """A BatchSource of the transitions of a relabeled dataset."""

    layout: StateLayout
    turns: TurnTable
    transitions: TransitionTable

    @classmethod
    def of(cls, dataset: Dataset) -> "RelabeledData":
        """Raises DataError on an action or a number that cannot be."""
        check_rows(dataset.turns, dataset.transitions, 0, len(dataset.catalog))
        if len(dataset.transitions) == 0:
            raise DataError(NO_TRANSITIONS)
        return cls(dataset.layout, dataset.turns, dataset.transitions)

    @classmethod
    def open(cls, location: Location, memory_mb: float) -> "RelabeledData":
        """From row files, of which at most memory_mb each are kept in memory; made when they are missing.

        Raises DataError as `of`, before the files exist.
        """
        header = read_header(location)
        folder, layout = row_files(location, header), header.layout
        return cls(
            layout,
            TurnsOnDisk(RowFile(folder / TURNS, turn_row_type(layout), memory_mb), layout.num_models),
            TransitionsOnDisk(RowFile(folder / TRANSITIONS, TRANSITION_ROW, memory_mb)),
        )

    @property
    def state_dim(self) -> int:
        return self.layout.state_dim

    @property
    def num_actions(self) -> int:
        return self.layout.num_models

    @property
    def network(self) -> dict[str, int]:
        return {"num_context": self.layout.num_context, "num_after": NUM_AFTER, "num_risk": NUM_RISK}

    def __len__(self) -> int:
        return len(self.transitions)

    def batch(self, rows: IntArray) -> Batch:
        t = self.transitions.take(rows)
        remaining_usd = to_usd(t.remaining_nusd)
        # A terminated row has no next state: its own turn stands in, and `terminated` takes it out of the target.
        present = self.turns.take(t.turn_row)
        following = self.turns.take(np.where(t.terminated, t.turn_row, t.turn_row + 1))
        next_usd = np.where(t.terminated, remaining_usd, to_usd(t.remaining_nusd - t.cost_nusd))
        return {
            Columns.OBS: encode_state(self.layout, present, remaining_usd, t.turn),
            Columns.NEXT_OBS: encode_state(self.layout, following, next_usd, t.turn + 1),
            ALLOWED: affordable(present.estimates.cost_usd, present.estimates.cost_high_usd, remaining_usd),
            NEXT_ALLOWED: affordable(following.estimates.cost_usd, following.estimates.cost_high_usd, next_usd),
            Columns.ACTIONS: t.action.astype(np.int64),
            Columns.REWARDS: np.where(t.bankrupt, np.float32(0), t.reward),  # quality; bankruptcy is a head of its own
            BANKRUPT: t.bankrupt.astype(np.float32),
            Columns.TERMINATEDS: t.terminated,
        }


NO_TRANSITIONS = "the dataset has no transitions; were all turns without a judgement?"


def check_rows(turns: TurnFeatures, t: Transitions, first_row: int, num_models: int) -> None:
    """Raises DataError on what training cannot use; t.turn_row of `turns` begins at first_row."""
    numbers = {"reward": t.reward, "history": turns.history, **vars(turns.estimates)}
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            raise DataError(f"the dataset holds a {name} that is not finite; relabel again")
    if len(t) == 0:
        return
    if t.action.min() < 0 or t.action.max() >= num_models:
        raise DataError(f"actions must be in [0, {num_models}), got {t.action.min()}..{t.action.max()}; relabel again")
    first, last = int(t.turn_row.min()), int(np.max(t.turn_row + ~t.terminated))  # what goes on needs the row after
    if first < first_row or last >= first_row + len(turns):
        raise DataError(
            f"turn rows must be in [{first_row}, {first_row + len(turns)}), got {first}..{last}; relabel again"
        )


@dataclass(frozen=True)
class TurnsOnDisk:
    """The turn table: a row holds the estimates, one after the other, and the history."""

    rows: RowFile
    num_models: int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: IntArray) -> TurnFeatures:
        taken, width = self.rows.take(rows), self.num_models
        estimates = Estimates(*(taken[:, i * width : (i + 1) * width] for i in range(len(fields(Estimates)))))
        return TurnFeatures(estimates, taken[:, len(fields(Estimates)) * width :])


@dataclass(frozen=True)
class TransitionsOnDisk:
    """The transitions, in TRANSITION_ROW."""

    rows: RowFile

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: IntArray) -> Transitions:
        taken = self.rows.take(rows)
        return Transitions(**{field.name: taken[field.name] for field in fields(Transitions)})


def turn_row_type(layout: StateLayout) -> np.dtype[Any]:
    return np.dtype(("<f4", (len(fields(Estimates)) * layout.num_models + layout.summary_width,)))


def rows_by_stratum(location: Location, memory_mb: float) -> tuple[RowFile, ...]:
    """[NUM_STRATA] the transitions of each stratum, by row number."""
    folder = row_files(location, read_header(location))
    return tuple(RowFile(folder / stratum_file(s), np.int64, memory_mb) for s in range(NUM_STRATA))


def stratum_file(stratum: int) -> str:
    return f"stratum-{stratum}"


def row_files(location: Location, header: DatasetHeader) -> Path:
    """The folder of a dataset's row files. Raises DataError when the dataset cannot be used."""
    key = f"{header.manifest['data_fingerprint']}-{FORMAT_VERSION}"
    return made_once(key, partial(_write_row_files, location, header.manifest, len(header.catalog)))


def _write_row_files(location: Location, manifest: Mapping[str, Any], num_models: int, folder: Path) -> None:
    with ExitStack() as files:
        names = (TURNS, TRANSITIONS, *map(stratum_file, range(NUM_STRATA)))
        turn_file, transition_file, *by_stratum = (files.enter_context((folder / n).open("wb")) for n in names)
        first_turn = first_row = 0
        for turns, difficulty, t in read_shards(location, manifest):
            check_rows(turns, t, first_turn, num_models)
            turn_file.write(np.concatenate([*vars(turns.estimates).values(), turns.history], axis=1).tobytes())
            for rows in _in_rows(t):
                transition_file.write(rows.tobytes())
            stratum = strata(difficulty[t.turn_row - first_turn], t.bankrupt)
            for s, file in enumerate(by_stratum):
                file.write((np.flatnonzero(stratum == s) + first_row).tobytes())
            first_turn, first_row = first_turn + len(turns), first_row + len(t)
            del turns, difficulty, t, stratum  # before the next shard is read
    if first_row == 0:
        raise DataError(NO_TRANSITIONS)


def _in_rows(t: Transitions) -> Iterator[NDArray[Any]]:
    """TRANSITION_ROW, some rows at a time."""
    for start in range(0, len(t), 2**16):
        part = t.take(np.arange(start, min(start + 2**16, len(t))))
        rows = np.empty(len(part), dtype=TRANSITION_ROW)
        for field in fields(Transitions):
            rows[field.name] = getattr(part, field.name)
        yield rows
