"""Sessions on N shards of a ledger, simulated: uneven load, the wait at a shard, a shard that joins, one that fails.

    python benchmarks/sharding.py [--num-sessions 1000000] [--num-seeds 10] [--check docs/scale.md]

A session lives on the shard of its slot: CRC16 of its name modulo 16,384, as Redis Cluster places the hash tag of the
ledger's keys, slots in equal ranges. A shard is one Redis: it takes all commands that wait, runs them, syncs its file
once, then answers (appendfsync always); service times are measured ones (benchmarks/ledger_shard.py). 95 % t intervals
over seeds. Tables on stderr, one JSON line on stdout; `--check` compares the tables with a page.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _processes import machine
from _tables import markdown, show
from numpy.typing import NDArray

from seqroute_ray.data.bundled import load_composed

NUM_SLOTS = 16_384
SHARDS = (8, 16, 32, 64, 128)
REQUESTS_PER_S = 100_000
MAX_SESSION_PER_S = 50  # no session has more turns a second, parallel ones included: an assumption
NUM_KEYS = 1_000  # API keys; their shares of the requests are Zipf's with exponent 1
T_975 = {4: 2.776, 9: 2.262, 19: 2.093}  # Student's t by degrees of freedom
# CPU of Redis a command, us: benchmarks/ledger_shard.py, redis_many. A turn is one of each.
OPERATIONS_US = {"account": 15.0, "reserve": 75.0, "settle": 140.0}
MONTH_SHARE = 0.5  # what the month's read, reservation and settlement cost, over those of the session
SYNCS_MS = (0.15, 1.0)  # this machine's disk; a network disk, assumed
UTILISATIONS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
MEAN_BURST = 8  # commands that come together where traffic is bursty: geometric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_sessions: int = 1_000_000
    num_commands: int = 100_000  # of one queue
    num_seeds: int = 10
    check: Path | None = None  # a page that must have these tables


# --- where a session is ---


def crc16_table() -> Ints:
    table = np.zeros(256, dtype=np.int64)
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = ((value << 1) ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
        table[byte] = value
    return table


def slots_of(names: NDArray[np.uint8]) -> Ints:
    """[S] from names as bytes [S, L]: CRC16 (XMODEM) modulo NUM_SLOTS."""
    table, crc = crc16_table(), np.zeros(len(names), dtype=np.int64)
    for column in names.T:
        crc = ((crc << 8) & 0xFF00) ^ table[(crc >> 8) ^ column]
    return crc % NUM_SLOTS


def names_of(rng: Rng, num: int, kind: str) -> NDArray[np.uint8]:
    """[S, L] ledger names: UUIDs, or counters as a careless client numbers its sessions."""
    prefix = np.frombuffer(b"team-a:", dtype=np.uint8)
    if kind == "uuid":
        digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[rng.integers(0, 16, (num, 32))]
    else:
        places = 10 ** np.arange(8)[::-1]
        digits = (48 + np.arange(num)[:, None] // places % 10).astype(np.uint8)
    return np.hstack([np.broadcast_to(prefix, (num, len(prefix))), digits])


def shards_of(slots: Ints, num_shards: int) -> Ints:
    return slots * num_shards // NUM_SLOTS


# --- how much each session asks ---


def rates_of(rng: Rng, num: int, kind: str) -> Floats:
    """[S] shares of all requests."""
    weights: Floats
    if kind == "equal":
        weights = np.ones(num)
    elif kind == "lengths":  # sessions of the bundled chat trace, alive for equally long
        lengths, _ = load_composed("fit", num)
        weights = rng.choice(np.asarray(lengths, dtype=np.float64), num)
    else:
        weights = rng.permutation(np.arange(1, num + 1, dtype=np.float64) ** -float(kind.split()[1]))
    shares: Floats = weights / weights.sum()
    if kind.endswith("capped"):
        shares = capped(shares, MAX_SESSION_PER_S / REQUESTS_PER_S)
    return shares


def capped(shares: Floats, most: float) -> Floats:
    """What is above `most` goes to the others in proportion; sums to 1 still."""
    full = shares >= most
    while (shares[full] > most).any():
        shares = np.where(full, most, shares * (1 - most * full.sum()) / shares[~full].sum())
        full = shares >= most
    return shares


KINDS = {
    "equal": "every session alike",
    "lengths": "by the lengths of the chat trace",
    "zipf 0.5": "Zipf 0.5",
    "zipf 1.0 capped": f"Zipf 1, at most {MAX_SESSION_PER_S}/s a session",
    "zipf 1.0": "Zipf 1, no limit",
}


def loads_of(shards: Ints, shares: Floats, num_shards: int) -> Floats:
    """[N] shares of the load."""
    loads: Floats = np.bincount(shards, weights=shares, minlength=num_shards).astype(np.float64)
    return loads


def imbalance(loads: Floats) -> float:
    return float(loads.max() / loads.mean())


def with_months(rng: Rng, loads: Floats) -> Floats:
    """[N] load when every request also reserves in the monthly account of its API key."""
    shares = 1 / np.arange(1, NUM_KEYS + 1)
    shares /= shares.sum()
    months = np.bincount(rng.integers(0, len(loads), NUM_KEYS), weights=shares, minlength=len(loads))
    return (loads + MONTH_SHARE * months) / (1 + MONTH_SHARE)


# --- a shard as a queue ---


def arrivals_of(rng: Rng, num: int, per_s: float, *, bursts: bool) -> Floats:
    """[n] times of commands: Poisson, or bursts that come as Poisson."""
    if not bursts:
        return np.cumsum(rng.exponential(1 / per_s, num))
    sizes = rng.geometric(1 / MEAN_BURST, num)  # more than enough
    starts = np.cumsum(rng.exponential(MEAN_BURST / per_s, num))
    return np.repeat(starts, sizes)[:num]


def services_of(rng: Rng, num: int) -> Floats:
    """[n] seconds of CPU."""
    return rng.choice(np.array(list(OPERATIONS_US.values())) / 1e6, num)


def latencies(arrivals: Floats, services: Floats, sync_s: float) -> Floats:
    """[n] from a command's arrival to its answer: whatever waits is run, synced once, then answered together."""
    times, ends = arrivals.tolist(), np.concatenate([[0.0], np.cumsum(services)])
    answered, first, now_s = np.empty(len(times)), 0, 0.0
    while first < len(times):
        now_s = max(now_s, times[first])
        last = bisect_right(times, now_s, first)
        now_s += float(ends[last] - ends[first]) + sync_s
        answered[first:last] = now_s
        first = last
    return answered - arrivals


def waits(arrivals: Floats, services: Floats) -> Floats:
    """[n] of a queue that answers each command at its own end (M/G/1): Lindley's recursion without a loop."""
    steps = services[:-1] - np.diff(arrivals)
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    result: Floats = walk - np.minimum.accumulate(walk)
    return result


def p99_ms(rng: Rng, num: int, utilisation: float, sync_ms: float, *, bursts: bool) -> float:
    services = services_of(rng, num)
    arrivals = arrivals_of(rng, num, utilisation / services.mean(), bursts=bursts)
    latency = waits(arrivals, services) + services if sync_ms == 0 else latencies(arrivals, services, sync_ms / 1e3)
    return float(np.quantile(latency[num // 10 :], 0.99)) * 1e3  # the first tenth fills the queue


# --- a shard that joins ---


def mixed(keys: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """[S] pseudo-random by key and salt (splitmix64)."""
    with np.errstate(over="ignore"):
        bits = keys + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def moved(rng: Rng, num: int, num_shards: int) -> dict[str, float]:
    """Share of the sessions that another shard holds when one joins, by the way they are placed."""
    keys, slots = rng.integers(0, 2**63, num).astype(np.uint64), rng.integers(0, NUM_SLOTS, num)
    best, home = np.zeros(num, dtype=np.uint64), np.zeros(num, dtype=np.int64)
    homes = []
    for shard in range(num_shards + 1):
        score = mixed(keys, shard)
        home, best = np.where(score > best, shard, home), np.maximum(score, best)
        homes.append(home)
    owner = shards_of(np.arange(NUM_SLOTS), num_shards)
    joined = owner.copy()
    for shard in range(num_shards):  # each gives an equal part of its slots to the new one
        own = np.flatnonzero(owner == shard)
        joined[own[: round(len(own) / (num_shards + 1))]] = num_shards
    return {
        "modulo": float(np.mean(keys % np.uint64(num_shards) != keys % np.uint64(num_shards + 1))),
        "slots, as few as possible": float(np.mean(owner[slots] != joined[slots])),
        "slots, equal ranges anew": float(np.mean(shards_of(slots, num_shards) != shards_of(slots, num_shards + 1))),
        "rendezvous": float(np.mean(homes[-1] != homes[-2])),
    }


# --- tables ---


def interval(values: Sequence[float], form: str = "{:.2f}") -> str:
    mean, half = (
        float(np.mean(values)),
        T_975.get(len(values) - 1, 2.0) * float(np.std(values, ddof=1)) / len(values) ** 0.5,
    )
    return f"{form.format(mean)} [{form.format(mean - half)}, {form.format(mean + half)}]"


def imbalance_table(settings: Settings) -> tuple[str, dict[str, Any]]:
    figures: dict[str, dict[int, list[float]]] = {
        name: {n: [] for n in SHARDS} for name in (*KINDS, "counter", "months")
    }
    for seed in range(settings.num_seeds):
        rng = np.random.default_rng([seed, 1])
        slots = slots_of(names_of(rng, settings.num_sessions, "uuid"))
        counted = slots_of(names_of(rng, settings.num_sessions, "counter"))
        shares = {kind: rates_of(rng, settings.num_sessions, kind) for kind in KINDS}
        for n in SHARDS:
            shards = shards_of(slots, n)
            for kind in KINDS:
                figures[kind][n].append(imbalance(loads_of(shards, shares[kind], n)))
            figures["counter"][n].append(imbalance(loads_of(shards_of(counted, n), shares["equal"], n)))
            figures["months"][n].append(imbalance(with_months(rng, loads_of(shards, shares["lengths"], n))))
    titles = KINDS | {
        "counter": "every session alike, named by a counter",
        "months": f"by lengths, and every request reserves in one of {NUM_KEYS:,} monthly accounts",
    }
    rows = [[titles[name], *(interval(figures[name][n]) for n in SHARDS)] for name in titles]
    means = {name: {n: float(np.mean(values)) for n, values in of.items()} for name, of in figures.items()}
    return markdown(["requests of a session", *(f"{n} shards" for n in SHARDS)], rows), means


def wait_table(settings: Settings) -> tuple[str, dict[str, Any]]:
    rows, means = [], {}
    for bursts in (False, True):
        for sync_ms in (0.0, *SYNCS_MS):
            values = [
                [
                    p99_ms(np.random.default_rng([seed, 7]), settings.num_commands, busy, sync_ms, bursts=bursts)
                    for seed in range(settings.num_seeds)
                ]
                for busy in UTILISATIONS
            ]
            sync = f"sync of {sync_ms:g} ms" if sync_ms else "no sync (M/G/1)"
            name = f"{f'bursts of {MEAN_BURST}' if bursts else 'Poisson'}, {sync}"
            rows.append([name, *(interval(each) for each in values)])
            means[name] = [float(np.mean(each)) for each in values]
    return markdown(["commands come as", *(f"{u:.0%} busy" for u in UTILISATIONS)], rows), means


def moved_table(settings: Settings) -> tuple[str, dict[str, Any]]:
    means: dict[str, dict[int, list[float]]] = {}
    for n in SHARDS[:-1]:
        for seed in range(settings.num_seeds):
            for name, share in moved(np.random.default_rng([seed, 2]), settings.num_sessions, n).items():
                means.setdefault(name, {}).setdefault(n, []).append(100 * share)
    rows = [[name, *(interval(of[n], "{:.1f}") for n in SHARDS[:-1])] for name, of in means.items()]
    flat = {name: {n: float(np.mean(values)) for n, values in of.items()} for name, of in means.items()}
    return markdown(["placed by", *(f"{n} to {n + 1}" for n in SHARDS[:-1])], rows), flat


def failure_table(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Share of the requests that a dead shard blocks: of the unluckiest shard, in percent."""
    figures: dict[str, dict[int, list[float]]] = {"worst": {}, "months": {}}
    for seed in range(settings.num_seeds):
        rng = np.random.default_rng([seed, 3])
        slots = slots_of(names_of(rng, settings.num_sessions, "uuid"))
        shares = rates_of(rng, settings.num_sessions, "zipf 1.0 capped")
        key_shares = 1 / np.arange(1, NUM_KEYS + 1)
        key_shares /= key_shares.sum()
        for n in SHARDS:
            loads = loads_of(shards_of(slots, n), shares, n)
            months = np.bincount(rng.integers(0, n, NUM_KEYS), weights=key_shares, minlength=n)
            figures["worst"].setdefault(n, []).append(100 * float(loads.max()))
            figures["months"].setdefault(n, []).append(100 * float((loads + months - loads * months).max()))
    titles = {"worst": "sessions alone", "months": f"and monthly accounts of {NUM_KEYS:,} API keys"}
    rows = [
        ["a shard's fair share", *(f"{100 / n:.1f}" for n in SHARDS)],
        *([titles[name], *(interval(figures[name][n], "{:.1f}") for n in SHARDS)] for name in titles),
    ]
    means = {name: {n: float(np.mean(values)) for n, values in of.items()} for name, of in figures.items()}
    return markdown(["what is asked of the dead shard", *(f"{n} shards" for n in SHARDS)], rows), means


def main(settings: Settings) -> None:
    made = {
        "imbalance": imbalance_table(settings),
        "wait": wait_table(settings),
        "moved": moved_table(settings),
        "failure": failure_table(settings),
    }
    show({name: table for name, (table, _) in made.items()}, settings.check)
    figures = {name: figures for name, (_, figures) in made.items()}
    print(
        json.dumps(
            {**figures, "num_sessions": settings.num_sessions, "num_seeds": settings.num_seeds, "machine": machine()}
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
