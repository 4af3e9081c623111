"""A session file read group by group: what is needed of all sessions at once is small, the rest stays on disk."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from seqroute_ray.core.arrays import BoolArray, FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.mdp import REFERENCE_TURNS, expected_turns_left
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.random_bits import Bits, text_keys
from seqroute_ray.core.sessions import Sessions, open_sessions, read_sessions
from seqroute_ray.core.storage import Location, resolve

PART = "fit"  # what training may see
SAMPLE_SEED = 0
NARROW = ["session_id", "part", "action", "cost_nusd", "quality"]  # columns that the totals need
HASH_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class SessionFile:
    """The fit part of a session file (all of it when the logs name no parts), and its totals."""

    location: Location
    catalog: Catalog
    embedder: str
    has_parts: bool
    num_sessions: IntArray  # [G] of the fit part in each row group
    num_turns: IntArray  # [G]
    expected_turns_left: tuple[float, ...]
    mean_cost_usd: FloatArray  # [K] of a logged turn
    mean_quality: FloatArray  # [K] of a logged turn; NaN: never judged
    keys: Bits  # [S] random, one a session: the lowest are the sample
    sha256: str

    @classmethod
    def scan(cls, location: Location) -> "SessionFile":
        """Read the narrow columns. Raises DataError when there is no session of the fit part."""
        head = read_sessions(location, row_groups=[])
        parts, lengths, keys = [], [], []
        total_nusd, count = (np.zeros(len(head.catalog), dtype=np.int64) for _ in range(2))
        total_quality, num_judged = np.zeros(len(head.catalog)), np.zeros(len(head.catalog), dtype=np.int64)
        with open_sessions(location) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=NARROW)
                parts.append(np.array(table["part"].to_pylist(), dtype=np.str_))
                lengths.append(np.asarray(table["action"].combine_chunks().value_lengths(), dtype=np.int64))
                keys.append(text_keys(SAMPLE_SEED, table["session_id"].to_pylist()))
                chosen = np.repeat(np.isin(parts[-1], ("", PART)), lengths[-1])
                action, cost_nusd, quality = (
                    np.asarray(table[name].combine_chunks().flatten())[chosen]
                    for name in ("action", "cost_nusd", "quality")
                )
                np.add.at(total_nusd, action, cost_nusd)
                count += np.bincount(action, minlength=len(count))
                judged = np.isfinite(quality)
                total_quality += np.bincount(action[judged], weights=quality[judged], minlength=len(count))
                num_judged += np.bincount(action[judged], minlength=len(count))
        if not sum(map(len, parts)):
            raise DataError(f"{location}: the session file has 0 sessions; import some logs")
        names = set(np.concatenate(parts).tolist()) - {""}
        if names and PART not in names:
            raise DataError(f"{location}: no session of part {PART!r} here, only of {', '.join(sorted(names))}")
        masks = [part == (PART if names else "") for part in parts]
        return cls(
            location=location,
            catalog=head.catalog,
            embedder=head.embedder,
            has_parts=bool(names),
            num_sessions=np.array([mask.sum() for mask in masks]),
            num_turns=np.array([of[mask].sum() for of, mask in zip(lengths, masks, strict=True)]),
            expected_turns_left=expected_turns_left(np.concatenate(lengths)[np.concatenate(masks)]),
            mean_cost_usd=to_usd(total_nusd) / np.maximum(count, 1),
            mean_quality=np.divide(total_quality, num_judged, out=np.full(len(count), np.nan), where=num_judged > 0),
            keys=np.concatenate(keys)[np.concatenate(masks)],
            sha256=_sha256(location),
        )

    @property
    def reference_cost_usd(self) -> float:
        """REFERENCE_TURNS mean turns of the dearest model."""
        return float(REFERENCE_TURNS * self.mean_cost_usd.max())

    @property
    def cheapest(self) -> int:
        """Action of the model of the lowest mean cost."""
        return int(np.argmin(self.mean_cost_usd))

    @property
    def strongest(self) -> int:
        """Action of the model of the highest mean quality."""
        return int(np.argmax(np.nan_to_num(self.mean_quality, nan=-1.0)))

    def read(self, row_group: int) -> Sessions:
        """The fit part of a row group."""
        sessions = read_sessions(self.location, [row_group])
        whole = not self.has_parts or self.num_sessions[row_group] == sessions.num_sessions
        return sessions if whole else sessions.take(sessions.part == PART)

    def groups(self) -> Iterator[Sessions]:
        for group in np.flatnonzero(self.num_sessions).tolist():
            yield self.read(group)

    def sample(self, max_sessions: int) -> Sessions:
        """So many sessions at random, or all of them: the same ones whoever asks."""
        limit = np.partition(self.keys, max_sessions - 1)[max_sessions - 1] if len(self.keys) > max_sessions else None

        def chosen(sessions: Sessions) -> BoolArray:
            keys = text_keys(SAMPLE_SEED, sessions.session_id.tolist())
            return np.ones(len(keys), dtype=np.bool_) if limit is None else keys <= limit

        return Sessions.concatenate([sessions.take(chosen(sessions)) for sessions in self.groups()])

    def has_a_tree(self) -> bool:
        """True when at least one session has the outcomes of every model."""
        return any(bool(sessions.is_tree.any()) for sessions in self.groups())


def _sha256(location: Location) -> str:
    filesystem, path = resolve(location)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
