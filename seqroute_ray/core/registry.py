"""A registry of policies: a folder (or URI) of versions, and two pointers that servers follow.

versions/NUMBER-HASH/   manifest.json and weights.npz of the policy, then card.json: a version without a card is none
pointers.json           who is current, who is canary and for which share of sessions, who was current before

Versions never change. Pointers are one small file that is replaced as a whole: readers see the old state or the new
one. Every move has a number. On a disk a lock file lets one writer in at a time, and of two moves that began from the
same number the second one is refused. Object stores have no locks: there the number is looked at just before the write,
and two moves within the same few milliseconds may both pass, of which the later one then stands.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.core.locks import only_one
from seqroute_ray.core.policy import MANIFEST, WEIGHTS, PolicyArtefact
from seqroute_ray.core.storage import Folder, Location, local_path, one_line

CARD, POINTERS, VERSIONS, LOCK = "card.json", "pointers.json", "versions", "registry.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known of a version."""

    version: str  # NUMBER-HASH; the hash is the artefact's own
    parent: str  # the version that it was trained on from; "" for a first one
    made_at: str  # ISO 8601, UTC
    metrics: dict[str, Any] = field(default_factory=dict)  # of the gate
    lineage: dict[str, Any] = field(default_factory=dict)  # fingerprints of data and code


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointers:
    """Which versions serve."""

    current: str = ""
    canary: str = ""
    canary_share: float = 0.0  # of the sessions
    previous: tuple[str, ...] = ()  # who was current before, the latest last
    number: int = 0  # of the move that made this state
    moved_at: str = ""  # ISO 8601, UTC
    why: str = ""


class Registry:
    """The registry at a location, which is made by its first version."""

    def __init__(self, location: Location) -> None:
        self._folder = Folder.at(location)

    def add(self, artefact: Path, *, parent: str = "", metrics: Mapping[str, Any], lineage: Mapping[str, Any]) -> Card:
        """Copy a policy in as a new version; the same policy again is the version that it was. Raises ArtefactError."""
        policy_hash = PolicyArtefact.load(artefact).version
        with self._alone():
            cards = self.cards()
            for card in cards:
                if hash_of(card.version) == policy_hash:
                    return card
            number = 1 + max((int(card.version.split("-")[0]) for card in cards), default=0)
            card = Card(
                version=f"{number:04d}-{policy_hash}",
                parent=parent,
                made_at=_now(),
                metrics=dict(metrics),
                lineage=dict(lineage),
            )
            for name in (WEIGHTS, MANIFEST):
                self._folder.write(self._name(card.version, name), (artefact / name).read_bytes())
            self._folder.write(self._name(card.version, CARD), _encode(asdict(card)))
        return card

    def cards(self) -> list[Card]:
        """Of all versions, the oldest first."""
        names = [name for name in self._folder.names() if name.startswith(f"{VERSIONS}/") and name.endswith(f"/{CARD}")]
        return [self._card(name) for name in names]

    def card(self, version: str) -> Card:
        """Raises ConfigError on an unknown version."""
        if not version or not self._folder.exists(self._name(version, CARD)):
            known = ", ".join(card.version for card in self.cards()) or "none"
            raise ConfigError(f"registry {self._folder}: no version {version!r}; known: {known}")
        return self._card(self._name(version, CARD))

    def load(self, version: str) -> PolicyArtefact:
        """Raises ConfigError, ArtefactError."""
        self.card(version)
        with TemporaryDirectory() as scratch:
            for name in (WEIGHTS, MANIFEST):
                try:
                    (Path(scratch) / name).write_bytes(self._folder.read(self._name(version, name)))
                except OSError as error:
                    raise ArtefactError(f"registry {self._folder}: {version}/{name} {one_line(error)}") from error
            return PolicyArtefact.load(Path(scratch))

    def location_of(self, version: str) -> str:
        """Folder or URI of a version's policy."""
        return f"{self._folder.location.rstrip('/')}/{VERSIONS}/{version}"

    def pointers(self) -> Pointers:
        """Raises ArtefactError when the file is damaged."""
        if not self._folder.exists(POINTERS):
            return Pointers()
        try:
            fields = json.loads(self._folder.read(POINTERS))
            return Pointers(**{**fields, "previous": tuple(fields["previous"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"registry {self._folder}: {POINTERS} is damaged ({error!r}); restore it") from error

    def promote(self, version: str, why: str = "") -> Pointers:
        """Make a version current; the canary, if it was this or another one, ends."""
        self.card(version)
        now = self.pointers()
        if now.current == version and not now.canary:
            return now
        previous = now.previous if now.current in ("", version) else (*now.previous, now.current)
        moved = replace(now, current=version, canary="", canary_share=0.0, previous=previous)
        return self._move(now, moved, why or "promoted")

    def start_canary(self, version: str, share: float, why: str = "") -> Pointers:
        """Let a version decide for a share of the sessions. Raises ConfigError."""
        self.card(version)
        now = self.pointers()
        if not now.current:
            raise ConfigError(f"registry {self._folder}: a canary needs a current version beside it; promote one first")
        if not 0 < share < 1:
            raise ConfigError(f"a canary's share must be in (0, 1), got {share}")
        if version == now.current:
            raise ConfigError(f"version {version} is current already; it needs no canary")
        return self._move(now, replace(now, canary=version, canary_share=share), why or "canary started")

    def roll_back(self, why: str = "") -> Pointers:
        """End the canary; where there is none, make the version current that was so before. Raises ConfigError."""
        now = self.pointers()
        if now.canary:
            return self._move(now, replace(now, canary="", canary_share=0.0), why or "canary ended")
        if not now.previous:
            raise ConfigError(f"registry {self._folder}: no earlier version to go back to")
        *previous, last = now.previous
        return self._move(now, replace(now, current=last, previous=tuple(previous)), why or "rolled back")

    def _move(self, before: Pointers, after: Pointers, why: str) -> Pointers:
        with self._alone():
            if self.pointers().number != before.number:
                raise ConfigError(
                    f"registry {self._folder}: somebody else has just moved the pointers; look, then try again"
                )
            after = replace(after, number=before.number + 1, moved_at=_now(), why=why)
            self._folder.write(POINTERS, _encode(asdict(after)))
        return after

    def _alone(self) -> AbstractContextManager[None]:
        """The only writer on this disk while the block runs; see the module for object stores."""
        path = local_path(self._folder.location)
        return nullcontext() if path is None else only_one(path / LOCK, wait=True)

    def _card(self, name: str) -> Card:
        try:
            return Card(**json.loads(self._folder.read(name)))
        except (OSError, ValueError, TypeError) as error:
            raise ArtefactError(f"registry {self._folder}: {name} is damaged ({error!r}); restore it") from error

    def _name(self, version: str, name: str) -> str:
        return f"{VERSIONS}/{version}/{name}"


def hash_of(version: str) -> str:
    """What decision records name a version by."""
    return version.rpartition("-")[2]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _encode(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1) + "\n").encode()
