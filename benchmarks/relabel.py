"""Relabeling against its own kernel, a Python loop, polars and Ray Data: CPU time as ratios in one run, and memory.

    python benchmarks/relabel.py [--num-sessions N] [--factor F] [--out DIR]

Sessions are sampled from the bundled outcomes (N, and F times as many); every measurement is a process of its own.
Needs polars (extra `bench`). Ends with one JSON line; times are CPU seconds.

kernel    core/hbr.py on sessions in memory, plus the Parquet encoding of both tables
local     all shards of `--runner local`: read, estimate, relabel, encode, checksum, write; the estimator's fit apart
polars    the same transitions by expressions of polars from the same paths and budgets, written as Parquet
loop      the same transitions turn by turn in Python, the test oracle: equal rows, or the benchmark fails; over local:
          the local runner with the loop in the kernel's place
ray       all shards on Ray Data with two workers, every process of the cluster counted
"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import tyro
from _processes import cluster_cpu_s, machine, peak_memory_mb

from seqroute_ray.core import dataset as ds
from seqroute_ray.core import hbr
from seqroute_ray.core.hbr import HbrConfig, Transitions, relabel
from seqroute_ray.core.random_bits import text_keys
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.core.storage import Folder
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.data.sample import SampleConfig, write_sample
from seqroute_ray.data.session_file import SessionFile
from seqroute_ray.data.shards import Shards
from seqroute_ray.data.tries import run_shards

Measured = dict[str, Any]
What = Literal["kernel", "local", "polars", "loop", "ray"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_sessions: int = 10_000
    factor: int = 10  # the large run has so many times the sessions
    seed: int = 0
    out: Path = Path("runs/relabel")
    measure: What | None = None  # one measurement, as a process of its own
    sessions: Path | None = None  # what it measures
    num_cpus: int = 2  # of Ray's workers
    warm_up: Path | None = None  # sessions that Ray relabels first, before the clock: its workers are up then


def hbr_config(settings: Settings) -> HbrConfig:
    return HbrConfig(paths="sampled", seed=settings.seed)


def make_sessions(settings: Settings, num_sessions: int) -> Path:
    path = settings.out / f"sessions-{num_sessions}.parquet"
    if not path.exists():
        logs = settings.out / f"logs-{num_sessions}.parquet"
        write_sample(SampleConfig(num_sessions=num_sessions, with_outcomes=True, seed=settings.seed), logs)
        import_logs(ImportConfig(logs=(logs,), out=path, runner="local"))
        logs.unlink()
    return path


def loop(sessions: Sessions, reference_usd: float, config: HbrConfig) -> Iterator[Transitions]:
    """One turn after the other; paths and budgets are drawn by the kernel's own functions."""
    kinds, _ = hbr.paths_kind(sessions, config)
    for s in range(sessions.num_sessions):
        start, num_turns = int(sessions.offsets[s]), int(sessions.num_turns[s])
        turn_rows, keys = np.arange(start, start + num_turns)[None], text_keys(config.seed, [sessions.session_id[s]])
        paths = hbr.paths_of(sessions, turn_rows, keys, str(kinds[s]), config)[0].tolist()
        budgets = hbr.budgets_of(keys, len(paths), reference_usd, config)[0].tolist()
        costs = sessions.outcome_cost_nusd[start : start + num_turns].tolist()
        qualities = sessions.outcome_quality[start : start + num_turns].tolist()
        rows = []
        for path, path_budgets in zip(paths, budgets, strict=True):
            for budget in path_budgets:
                remaining = budget
                for turn, action in enumerate(path):
                    cost, quality = costs[turn][action], qualities[turn][action]
                    bankrupt = cost > remaining
                    last = bankrupt or turn == num_turns - 1
                    reward = -config.bankruptcy_penalty if bankrupt else quality
                    if bankrupt or quality == quality:  # judged
                        rows.append((start + turn, turn, action, remaining, cost, reward, last, bankrupt))
                    if bankrupt:
                        break
                    remaining -= cost
        yield Transitions(*(np.array(column) for column in zip(*rows, strict=True)))


def by_polars(sessions: Sessions, reference_usd: float, config: HbrConfig) -> bytes:
    """A shard's transitions as a polars user would write them."""
    import polars as pl

    frames = []
    for length in np.unique(sessions.num_turns).tolist():
        index = np.flatnonzero(sessions.num_turns == length)
        turn_rows = sessions.offsets[index][:, None] + np.arange(length)
        keys = text_keys(config.seed, sessions.session_id[index].tolist())
        actions = hbr.paths_of(sessions, turn_rows, keys, "sampled", config)
        cost_nusd, quality = hbr.outcomes_of(sessions, turn_rows, actions, "sampled")
        budgets = hbr.budgets_of(keys, actions.shape[1], reference_usd, config)
        num_paths = actions.shape[0] * actions.shape[1]
        path = np.repeat(np.arange(num_paths), length)
        turns = pl.DataFrame(
            {
                "path": path,
                "session": np.repeat(index, actions.shape[1] * length),
                "turn_row": np.broadcast_to(turn_rows[:, None, :], actions.shape).reshape(-1),
                "turn": np.tile(np.arange(length), num_paths),
                "action": actions.reshape(-1),
                "cost_nusd": cost_nusd.reshape(-1),
                "quality": quality.reshape(-1),
            }
        ).with_columns(before=pl.col("cost_nusd").cum_sum().over("path") - pl.col("cost_nusd"))
        grid = pl.DataFrame(
            {
                "path": np.repeat(np.arange(num_paths), budgets.shape[2]),
                "budget": np.tile(np.arange(budgets.shape[2]), num_paths),
                "budget_nusd": budgets.reshape(-1),
            }
        )
        frames.append(
            turns.lazy()
            .join(grid.lazy(), on="path")
            .with_columns(remaining_nusd=pl.col("budget_nusd") - pl.col("before"))
            .filter(pl.col("remaining_nusd") >= 0)
            .with_columns(bankrupt=pl.col("cost_nusd") > pl.col("remaining_nusd"))
            .filter(pl.col("bankrupt") | pl.col("quality").is_not_nan())
            .with_columns(
                reward=pl.when("bankrupt").then(-config.bankruptcy_penalty).otherwise("quality").cast(pl.Float32),
                terminated=pl.col("bankrupt") | (pl.col("turn") == length - 1),
            )
        )
    names = [field.name for field in fields(Transitions)]
    table = pl.concat(frames).sort("session", "path", "budget", "turn").select(names).collect()
    table = table.cast({"turn_row": pl.Int32, "turn": pl.Int16, "action": pl.Int16})
    sink = io.BytesIO()
    table.write_parquet(sink, compression="zstd", compression_level=1)
    return sink.getvalue()


def measure(settings: Settings) -> Measured:
    """One measurement; the sessions are in memory for kernel, polars and loop."""
    assert settings.sessions is not None
    config, source = hbr_config(settings), SessionFile.scan(settings.sessions)
    reference_usd = source.reference_cost_usd
    if settings.measure in ("local", "ray"):
        return measure_job(settings, source)
    shards, seconds = list(source.groups()), {}

    def timed(name: str, results: Any) -> Any:
        started = time.process_time()
        done = list(results)
        seconds[name] = time.process_time() - started
        return done

    relabeled = timed("kernel", (relabel(shard, reference_usd, config) for shard in shards))
    if settings.measure == "kernel":
        shard_work = prepare(settings, source, "local")
        turns = [shard_work.features(shard) for shard in shards]
        hard = [shard_work.difficulty(shard) for shard in shards]
        timed("encode_transitions", (ds.encode_transitions([rows]) for rows in relabeled))
        timed("encode_turns", map(ds.encode_turns, (shard.embedding for shard in shards), turns, hard))
        size = sum(len(ds.encode_transitions([rows])) for rows in relabeled)
        return {"cpu_s": seconds, "bytes_a_transition": size / sum(len(rows) for rows in relabeled)}
    if settings.measure == "loop":
        looped = timed("loop", (Transitions.concatenate(list(loop(s, reference_usd, config))) for s in shards))
        for ours, oracle in zip(relabeled, looped, strict=True):
            for field in fields(Transitions):
                wanted = getattr(oracle, field.name).astype(getattr(ours, field.name).dtype)
                np.testing.assert_array_equal(getattr(ours, field.name), wanted, err_msg=field.name)
        return {"cpu_s": seconds}
    files = timed("polars", (by_polars(shard, reference_usd, config) for shard in shards))
    import polars as pl

    for ours, file in zip(relabeled, files, strict=True):
        table = pl.read_parquet(io.BytesIO(file))
        for field in fields(Transitions):
            np.testing.assert_array_equal(getattr(ours, field.name), table[field.name].to_numpy(), err_msg=field.name)
    return {"cpu_s": seconds}


def prepare(settings: Settings, source: SessionFile, name: str) -> Shards:
    out = settings.out / "datasets" / name
    shutil.rmtree(out, ignore_errors=True)
    config = RelabelConfig(sessions=source.location, out=out, hbr=hbr_config(settings))
    return Shards.prepare(
        Folder.at(out), source, config.hbr, config.estimator, config.max_fit_sessions, key="benchmark"
    )


def measure_job(settings: Settings, source: SessionFile) -> Measured:
    """All shards, by this process or by Ray Data."""
    started = time.process_time()
    shards = prepare(settings, source, f"{settings.measure}-{source.num_sessions.sum()}")
    fit_s = time.process_time() - started
    assert settings.measure in ("local", "ray")
    if settings.measure == "ray":
        ray.init(num_cpus=settings.num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
        if settings.warm_up is not None:
            run_shards(prepare(settings, SessionFile.scan(settings.warm_up), "warm-up"), "ray")
    before_s, wall = cluster_cpu_s(), time.perf_counter()
    rows, _ = run_shards(shards, settings.measure)
    wall_s, after_s = time.perf_counter() - wall, cluster_cpu_s()
    sums = [row[name] for row in rows for name in ("turns_sha256", "transitions_sha256")]
    return {
        "cpu_s": {settings.measure: after_s - before_s, "fit": fit_s},
        "wall_s": wall_s,
        "num_transitions": sum(row["num_transitions"] for row in rows),
        "num_workers": len({row["worker"] for row in rows}),
        "peak_memory_mb": peak_memory_mb(),
        "sha256": ds.sha256("".join(sums).encode()),
    }


def run(settings: Settings, what: What, sessions: Path, num_cpus: int = 2) -> Measured:
    flags = replace(settings, measure=what, sessions=sessions, num_cpus=num_cpus)
    command = [sys.executable, __file__]
    for field in fields(flags):
        command += [f"--{field.name.replace('_', '-')}", str(getattr(flags, field.name))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    print(f"{what}, {sessions.name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main(settings: Settings) -> None:
    if settings.measure is not None:
        print(json.dumps(measure(settings)))
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    small = make_sessions(settings, settings.num_sessions)
    large = make_sessions(settings, settings.num_sessions * settings.factor)
    kernel, polars, python = (run(settings, what, small) for what in ("kernel", "polars", "loop"))
    local, local_large = run(settings, "local", small), run(settings, "local", large)
    on_ray, on_ray_large, on_ray_one = (
        run(settings, "ray", small),
        run(settings, "ray", large),
        run(settings, "ray", large, num_cpus=1),
    )
    assert local["sha256"] == on_ray["sha256"]
    assert local_large["sha256"] == on_ray_large["sha256"] == on_ray_one["sha256"]
    local_s = local["cpu_s"]["local"]
    extra = local_large["num_transitions"] - local["num_transitions"]
    ray_marginal_s = (on_ray_large["cpu_s"]["ray"] - on_ray["cpu_s"]["ray"]) / extra
    local_marginal_s = (local_large["cpu_s"]["local"] - local_s) / extra
    result = {
        "num_sessions": settings.num_sessions,
        "num_transitions": local["num_transitions"],
        "num_transitions_large": local_large["num_transitions"],
        "local_over_kernel": local_s / sum(kernel["cpu_s"].values()),
        "polars_over_local": polars["cpu_s"]["polars"] / local_s,
        "loop_over_local": 1 + (python["cpu_s"]["loop"] - kernel["cpu_s"]["kernel"]) / local_s,
        "loop_over_kernel": python["cpu_s"]["loop"] / kernel["cpu_s"]["kernel"],
        "ray_over_local_marginal": ray_marginal_s / local_marginal_s,
        "ray_speedup_2_workers": on_ray_one["wall_s"] / on_ray_large["wall_s"],
        "peak_memory_ratio": local_large["peak_memory_mb"] / local["peak_memory_mb"],
        "peak_memory_ratio_ray": on_ray_large["peak_memory_mb"] / on_ray["peak_memory_mb"],
        "bytes_a_transition": kernel["bytes_a_transition"],
        "sha256": local["sha256"],
        "sha256_large": local_large["sha256"],
        "measured": {
            "kernel": kernel,
            "polars": polars,
            "loop": python,
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
