"""Relabeling on Ray Data by the number of workers: sessions and transitions a second, speed-up, and the same bytes.

    python benchmarks/relabel_scaling.py [--num-sessions N] [--workers 1 2 4 ...] [--out DIR]

Sessions are sampled from the bundled outcomes; every measurement is a process of its own with a Ray of its own, as in
relabel.py. The clock runs from the first shard to the last; Ray's start, the estimator's fit and the start of the
workers, which relabel a tenth of the sessions first, are apart. Ends with one JSON line.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import relabel
import tyro
from _processes import machine


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_sessions: int = 100_000
    workers: tuple[int, ...] = (1, 2, 4, 8, 14)  # those beyond the machine's cores are left out
    seed: int = 0
    out: Path = Path("runs/relabel")


def main(settings: Settings) -> None:
    common = relabel.Settings(num_sessions=settings.num_sessions, seed=settings.seed, out=settings.out)
    settings.out.mkdir(parents=True, exist_ok=True)
    sessions = relabel.make_sessions(common, settings.num_sessions)
    common = replace(common, warm_up=relabel.make_sessions(common, max(1, settings.num_sessions // 10)))
    measured: list[dict[str, Any]] = []
    for workers in (workers for workers in settings.workers if workers <= (os.cpu_count() or 1)):
        done = relabel.run(common, "ray", sessions, num_cpus=workers)
        first = measured[0] if measured else None
        row = {
            "workers": workers,
            "processes": done["num_workers"],
            "wall_s": done["wall_s"],
            "cpu_s": done["cpu_s"]["ray"],
            "sessions_per_s": settings.num_sessions / done["wall_s"],
            "transitions_per_s": done["num_transitions"] / done["wall_s"],
            "speed_up": first["wall_s"] / done["wall_s"] if first else 1.0,
            "num_transitions": done["num_transitions"],
            "sha256": done["sha256"],
        }
        measured.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    assert len({row["sha256"] for row in measured}) == 1  # the same bytes, however many made them
    result = {"num_sessions": settings.num_sessions, "runs": measured, "seed": settings.seed, "machine": machine()}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
