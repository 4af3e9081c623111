"""What a dataset holds: counts, budgets, bankruptcies and actions by money left, and whether it is whole."""

from dataclasses import asdict, dataclass

import numpy as np
from rich.table import Table

from seqroute_ray.core import dataset as ds
from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.money import to_usd
from seqroute_ray.core.storage import Folder, Location

BAND_EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the money left, as multiples of the reference cost
THIN = 100  # transitions: an action with fewer in a band teaches little there


@dataclass(frozen=True)
class Band:
    """The transitions with so much money left before the turn."""

    low: float  # multiples of the reference cost
    high: float
    num_paths_begun: int  # replays that begin with so much: a path under a budget
    num_transitions: int
    bankrupt_share: float
    action_share: dict[str, float]
    never_taken: tuple[str, ...]  # models that no transition of the band took
    thinly_taken: tuple[str, ...]  # in fewer than THIN transitions


@dataclass(frozen=True)
class Inspection:
    """Checksums of every file hold, or there is none."""

    dataset: str
    num_sessions: int
    num_turns: int
    num_transitions: int
    num_shards: int
    num_quarantined: int
    bytes_turns: int
    bytes_transitions: int
    bytes_a_transition: float  # of the transitions' files
    reference_cost_usd: float
    bands: tuple[Band, ...]
    is_covered: bool  # every model was taken in every band that has transitions
    data_fingerprint: str


def inspect_dataset(location: Location) -> Inspection:
    """Read all files of a dataset, one shard at a time. Raises DataError naming a file that is missing or damaged."""
    manifest, folder = ds.read_manifest(location), Folder.at(location)
    ds.read_estimator(folder, manifest["estimator_sha256"])
    names = [model["name"] for model in manifest["catalog"]]
    reference_usd = manifest["layout"]["reference_cost_usd"]
    num_bands = len(BAND_EDGES) + 1
    taken, bankrupt = np.zeros((num_bands, len(names)), dtype=np.int64), np.zeros(num_bands, dtype=np.int64)
    started = np.zeros(num_bands, dtype=np.int64)
    for shard in manifest["shards"]:
        ds.read_turns(folder, shard)
        t = ds.read_transitions(folder, shard)
        band = np.digitize(to_usd(t.remaining_nusd) / reference_usd, BAND_EDGES)
        taken += np.bincount(band * len(names) + t.action, minlength=taken.size).reshape(taken.shape)
        bankrupt += np.bincount(band[t.bankrupt], minlength=num_bands)
        started += np.bincount(band[t.turn == 0], minlength=num_bands)
    bands, sizes = _bands(names, taken, bankrupt, started), folder.sizes()
    files = [ds.shard_files(shard) for shard in manifest["shards"]]
    bytes_turns, bytes_transitions = (sum(sizes[pair[table]] for pair in files) for table in (0, 1))
    return Inspection(
        dataset=str(location),
        num_sessions=manifest["num_sessions"],
        num_turns=manifest["num_turns"],
        num_transitions=manifest["num_transitions"],
        num_shards=len(manifest["shards"]),
        num_quarantined=len(manifest["quarantined"]),
        bytes_turns=bytes_turns,
        bytes_transitions=bytes_transitions,
        bytes_a_transition=bytes_transitions / max(manifest["num_transitions"], 1),
        reference_cost_usd=reference_usd,
        bands=bands,
        is_covered=not any(band.never_taken for band in bands),
        data_fingerprint=manifest["data_fingerprint"],
    )


def _bands(names: list[str], taken: IntArray, bankrupt: IntArray, started: IntArray) -> tuple[Band, ...]:
    """taken: [B, K]; bankrupt, started: [B]. Bands without transitions are left out."""
    edges: FloatArray = np.array([0.0, *BAND_EDGES, np.inf])
    return tuple(
        Band(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            num_paths_begun=int(started[b]),
            num_transitions=int(taken[b].sum()),
            bankrupt_share=float(bankrupt[b] / taken[b].sum()),
            action_share={name: float(n / taken[b].sum()) for name, n in zip(names, taken[b], strict=True)},
            never_taken=tuple(name for name, n in zip(names, taken[b], strict=True) if n == 0),
            thinly_taken=tuple(name for name, n in zip(names, taken[b], strict=True) if 0 < n < THIN),
        )
        for b in np.flatnonzero(taken.sum(axis=1)).tolist()
    )


def tables(inspection: Inspection) -> list[Table | str]:
    """For a terminal."""
    i = inspection
    names = list(i.bands[0].action_share) if i.bands else []
    table = Table(title="by money left before the turn, in multiples of the reference cost")
    for column in ("left", "paths begun", "transitions", "bankrupt", *names):
        table.add_column(column, justify="right")
    for band in i.bands:
        shares = [
            "never" if name in band.never_taken else f"{100 * share:.1f} %" for name, share in band.action_share.items()
        ]
        left = f"{band.low:g} to {band.high:g}x" if np.isfinite(band.high) else f"from {band.low:g}x"
        counts = [f"{band.num_paths_begun:,}", f"{band.num_transitions:,}"]
        table.add_row(left, *counts, f"{100 * band.bankrupt_share:.1f} %", *shares)
    quarantined = f", {i.num_quarantined} left out" if i.num_quarantined else ""
    head = (
        f"{i.dataset}: {i.num_sessions:,} sessions{quarantined}, {i.num_turns:,} turns, {i.num_transitions:,} "
        f"transitions in {i.num_shards} shards; all checksums hold\n"
        f"{i.bytes_transitions / 1e6:,.1f} MB of transitions ({i.bytes_a_transition:.1f} bytes each), "
        f"{i.bytes_turns / 1e6:,.1f} MB of turns; reference cost ${i.reference_cost_usd:.4g}"
    )
    return [head, table, _verdict(i)]


def _verdict(inspection: Inspection) -> str:
    holes = [
        f"{', '.join(band.never_taken)} below {band.high:g}x"
        if np.isfinite(band.high)
        else f"{', '.join(band.never_taken)} from {band.low:g}x"
        for band in inspection.bands
        if band.never_taken
    ]
    if holes:
        return (
            f"coverage: never taken: {'; '.join(holes)}. A policy cannot learn there what such a choice brings: log "
            "some traffic to it, bring outcomes and use --hbr.paths sampled, or take the model out of the pool"
        )
    thin = {name for band in inspection.bands for name in band.thinly_taken}
    if thin:
        return f"coverage: every model occurs in every band; in some, under {THIN} times: {', '.join(sorted(thin))}"
    return "coverage: every model occurs in every band"


def to_json(inspection: Inspection) -> dict[str, object]:
    """The last band ends at null: JSON has no infinity."""
    fields = asdict(inspection)
    bands = [{**band, "high": band["high"] if np.isfinite(band["high"]) else None} for band in fields["bands"]]
    return {**fields, "bands": bands}
