"""`seqroute registry list | show | add | promote | canary | rollback`: versions of policies, and which serve."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqroute_ray.core.errors import ConfigError

# Each command imports what it needs when it runs: `seqroute --help` loads no numpy.

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """All versions, the oldest first, and which of them serve."""

    registry: str  # folder or URI

    def run(self) -> Result:
        from rich.table import Table

        from seqroute_ray.core.registry import Registry
        from seqroute_ray.progress import console

        registry = Registry(self.registry)
        pointers, cards = registry.pointers(), registry.cards()
        serves = {pointers.canary: f"canary, {pointers.canary_share:.0%}", pointers.current: "current"}
        table = Table("version", "serves", "made at", "parent", title=f"Policies in {self.registry}")
        for card in cards:
            table.add_row(card.version, serves.get(card.version, ""), card.made_at, card.parent)
        console.print(table)
        return {"pointers": asdict(pointers), "versions": [asdict(card) for card in cards]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """One version: its card, its pool, and where its policy is."""

    registry: str  # folder or URI
    version: str = ""  # empty: the current one

    def run(self) -> Result:
        from seqroute_ray.core.registry import Registry

        registry = Registry(self.registry)
        version = self.version or registry.pointers().current
        card, artefact = registry.card(version), registry.load(version)
        return {
            **asdict(card),
            "location": registry.location_of(version),
            "models": list(artefact.catalog.names),
            "embedder": artefact.embedder,
            "reference_cost_usd": artefact.layout.reference_cost_usd,
            "data_fingerprint": artefact.data_fingerprint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """Copy a policy in as a new version; nothing serves it yet. No gate looks at it: `seqroute retrain` has one."""

    registry: str  # folder or URI; made by its first version
    policy: Path  # artefact folder
    promote: bool = False  # and make it current, as a first version needs

    def run(self) -> Result:
        from seqroute_ray.core.registry import Registry

        registry = Registry(self.registry)
        card = registry.add(self.policy, parent=registry.pointers().current, metrics={}, lineage={"added": "by hand"})
        pointers = registry.promote(card.version, "added") if self.promote else registry.pointers()
        return {"version": card.version, "pointers": asdict(pointers)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make a version current; servers that follow the registry swap to it. A canary ends."""

    registry: str  # folder or URI
    version: str = ""  # empty: the canary
    why: str = ""  # stands beside the pointers

    def run(self) -> Result:
        from seqroute_ray.core.registry import Registry

        registry = Registry(self.registry)
        version = self.version or registry.pointers().canary
        if not version:
            raise ConfigError(f"registry {self.registry}: there is no canary to promote; name a --version")
        return asdict(registry.promote(version, self.why))


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Let a version decide for a share of the sessions, always the same ones."""

    registry: str  # folder or URI
    version: str  # NUMBER-HASH, as `list` shows it
    share: float  # of the sessions, in (0, 1)
    why: str = ""  # stands beside the pointers

    def run(self) -> Result:
        from seqroute_ray.core.registry import Registry

        return asdict(Registry(self.registry).start_canary(self.version, self.share, self.why))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """End the canary; without one, make the version current that was so before."""

    registry: str  # folder or URI
    why: str = ""  # stands beside the pointers

    def run(self) -> Result:
        from seqroute_ray.core.registry import Registry

        return asdict(Registry(self.registry).roll_back(self.why))


RegistryCommand = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Add, tyro.conf.subcommand("add")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[Canary, tyro.conf.subcommand("canary")]
    | Annotated[Rollback, tyro.conf.subcommand("rollback")]
)
