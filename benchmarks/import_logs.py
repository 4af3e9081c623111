"""Importing logs of texts: rows a second, Ray Data against one process, and memory as the logs grow.

    python benchmarks/import_logs.py [--num-sessions N] [--factor F] [--out DIR]

JSON lines with texts of 5 to 2,000 words, sessions spread over FILES files; N sessions, and F times as many. Every
measurement is a process of its own; the session files of all runners must be equal. Ends with one JSON line.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import tyro
from _processes import cluster_cpu_s, machine, peak_memory_mb

from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.runners import RunnerName
from seqroute_ray.data.sample import DEFAULT_POOL

Measured = dict[str, Any]
FILES = 16
MAX_TURNS = 10
PROSE = "the budget of a session is spent once and a model that is asked costs what its tokens cost"


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_sessions: int = 10_000
    factor: int = 4  # the large run has so many times the sessions
    seed: int = 0
    out: Path = Path("runs/import")
    measure: RunnerName | None = None  # one measurement, as a process of its own
    logs: Path | None = None  # what it measures
    num_cpus: int = 2  # of Ray's workers


def make_logs(settings: Settings, num_sessions: int) -> Path:
    folder = settings.out / f"logs-{num_sessions}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(settings.seed)
    prose = " ".join(rng.choice(PROSE.split(), 20_000).tolist())
    files = [(folder / f"{number:02d}.jsonl").open("w") for number in range(FILES)]
    for session in range(num_sessions):
        for turn in range(int(rng.integers(1, MAX_TURNS + 1))):
            length = int(np.clip(np.exp(rng.normal(5.5, 1.2)), 20, 10_000))
            start = int(rng.integers(0, len(prose) - length))
            row = {
                "session_id": f"session-{session}",
                "turn": turn,
                "text": f"{session} {turn} {prose[start : start + length]}",
                "model": DEFAULT_POOL[int(rng.integers(0, len(DEFAULT_POOL)))],
                "quality": round(float(rng.uniform()), 3),
                "prompt_tokens": length // 4,
                "completion_tokens": int(rng.integers(10, 1000)),
            }
            files[int(rng.integers(0, FILES))].write(json.dumps(row) + "\n")
    for file in files:
        file.close()
    (folder / "done").touch()
    return folder


def measure(settings: Settings) -> Measured:
    assert settings.logs is not None
    assert settings.measure is not None
    out = settings.out / f"{settings.measure}-{settings.logs.name}.parquet"
    if settings.measure == "ray":
        ray.init(num_cpus=settings.num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    before_s, wall = cluster_cpu_s(), time.perf_counter()
    report = import_logs(ImportConfig(logs=(settings.logs,), out=out, runner=settings.measure))
    return {
        "num_rows": report.num_rows,
        "num_workers": report.num_workers,
        "cpu_s": cluster_cpu_s() - before_s,
        "wall_s": time.perf_counter() - wall,
        "peak_memory_mb": peak_memory_mb(),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }


def run(settings: Settings, runner: RunnerName, logs: Path, num_cpus: int = 2) -> Measured:
    command = [sys.executable, __file__, "--measure", runner, "--logs", str(logs), "--num-cpus", str(num_cpus)]
    print(f"{runner}, {logs.name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "--out", str(settings.out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main(settings: Settings) -> None:
    if settings.measure is not None:
        print(json.dumps(measure(settings)))
        return
    small, large = (make_logs(settings, settings.num_sessions * factor) for factor in (1, settings.factor))
    local, local_large, on_ray, on_ray_large, on_ray_one = (
        run(settings, "local", small),
        run(settings, "local", large),
        run(settings, "ray", small),
        run(settings, "ray", large),
        run(settings, "ray", large, num_cpus=1),
    )
    assert local["sha256"] == on_ray["sha256"]
    assert local_large["sha256"] == on_ray_large["sha256"] == on_ray_one["sha256"]

    def marginal(of: Measured, of_large: Measured) -> float:
        return float((of_large["cpu_s"] - of["cpu_s"]) / (of_large["num_rows"] - of["num_rows"]))

    result = {
        "num_rows": local["num_rows"],
        "num_rows_large": local_large["num_rows"],
        "rows_per_cpu_s": local_large["num_rows"] / local_large["cpu_s"],
        "ray_over_local_marginal": marginal(on_ray, on_ray_large) / marginal(local, local_large),
        "ray_speedup_2_workers": on_ray_one["wall_s"] / on_ray_large["wall_s"],
        "peak_memory_ratio": local_large["peak_memory_mb"] / local["peak_memory_mb"],
        "peak_memory_ratio_ray": on_ray_large["peak_memory_mb"] / on_ray["peak_memory_mb"],
        "measured": {
            "local": local,
            "local_large": local_large,
            "ray": on_ray,
            "ray_large": on_ray_large,
            "ray_large_one_worker": on_ray_one,
        },
        "seed": settings.seed,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
