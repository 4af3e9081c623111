"""Training against a plain torch loop and against RLlib's stock offline pipeline; time to the first step; memory.

    python benchmarks/train.py [--sessions N] [--out DIR]

Sessions are sampled from the bundled outcomes and relabeled once. Every measurement is a process of its own with one
thread of torch; the two that are compared take turns. Ends with one JSON line.

ours         transitions a second through DiscreteCQL.train() at batch 4096, one iteration at a time
plain        the same network, loss, Adam, clipping and target network in a bare loop over encoded states that lie in
             memory as tensors; the order of rows is drawn anew each epoch
epoch        one epoch of some rows through DiscreteCQL from the command on: Ray is up, all else counts
stock        the same rows, written as Parquet in RLlib's columns, through RLlib's own OfflineData and OfflinePreLearner
             into BC, its cheapest learner
first_step   `seqroute train` on all rows, from the start of the process to its first gradient step, and peak memory
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from _processes import cluster_cpu_s, machine

from seqroute_ray.core.dataset import read_dataset, read_header
from seqroute_ray.core.hbr import HbrConfig
from seqroute_ray.data.importer import ImportConfig, import_logs
from seqroute_ray.data.relabel import RelabelConfig, relabel_sessions
from seqroute_ray.data.sample import SampleConfig, write_sample
from seqroute_ray.training.config import CqlConfig

Measured = dict[str, Any]
What = Literal["interleaved", "epoch", "stock", "first_step"]
LOGICAL_CPUS = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_sessions: int = 10_000
    batch_size: int = 4096
    num_rounds: int = 16  # of the interleaved measurement
    steps_a_round: int = 30
    num_stock_rows: int = 196_608  # of the comparison with RLlib's own pipeline
    num_gpus: float = 0  # of first_step
    seed: int = 0
    out: Path = Path("runs/train")
    measure: What | None = None  # one measurement, as a process of its own

    @property
    def dataset(self) -> Path:
        return self.out / f"dataset-{self.num_sessions}"

    @property
    def stock_rows(self) -> Path:
        return self.out / f"stock-{self.num_stock_rows}.parquet"

    @property
    def cql(self) -> CqlConfig:
        return CqlConfig(batch_size=self.batch_size, seed=self.seed, num_gpus_per_learner=self.num_gpus)


def make_dataset(settings: Settings) -> None:
    if (settings.dataset / "manifest.json").exists():
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    logs, sessions = settings.out / "logs.parquet", settings.out / "sessions.parquet"
    write_sample(SampleConfig(num_sessions=settings.num_sessions, with_outcomes=True, seed=settings.seed), logs)
    import_logs(ImportConfig(logs=(logs,), out=sessions, runner="local"))
    hbr = HbrConfig(paths="sampled", seed=settings.seed)
    relabel_sessions(RelabelConfig(sessions=sessions, out=settings.dataset, hbr=hbr, runner="local"))


def start_ray() -> float:
    """Seconds that Ray's own start takes."""
    import logging

    import ray

    started = time.perf_counter()
    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return time.perf_counter() - started


def interleaved(settings: Settings) -> Measured:
    """Seconds a step of ours and of the plain loop, in turns."""
    import torch

    from seqroute_ray.training.sources import open_dataset
    from seqroute_ray.training.train import algorithm_config

    torch.set_num_threads(1)
    start_ray()
    header, cql = read_header(settings.dataset), settings.cql
    open_rows = partial(open_dataset, settings.dataset, cql.sampling, cql.memory_mb)
    config = algorithm_config(open_rows, cql, header.bankruptcy_penalty)
    algorithm = config.offline_data(dataset_num_iters_per_learner=settings.steps_a_round).build_algo()
    source = open_rows()
    plain = PlainLoop(source, encoded(source), cql, header.bankruptcy_penalty)
    algorithm.train()
    plain.run(settings.steps_a_round)
    ours_s, plain_s, ours_cpu_s, plain_cpu_s = (list[float]() for _ in range(4))
    for _ in range(settings.num_rounds):
        for run, wall, cpu in (
            (algorithm.train, ours_s, ours_cpu_s),
            (lambda: plain.run(settings.steps_a_round), plain_s, plain_cpu_s),
        ):
            started, cpu_started = time.perf_counter(), time.process_time()
            run()
            wall.append((time.perf_counter() - started) / settings.steps_a_round)
            cpu.append((time.process_time() - cpu_started) / settings.steps_a_round)
    ratios = np.array(plain_s) / np.array(ours_s)
    draws = np.random.default_rng(settings.seed).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {
        "throughput_over_plain_torch": float(np.median(ratios)),
        "throughput_over_plain_torch_ci": [float(low), float(high)],
        "transitions_per_s": float(settings.batch_size / np.median(ours_s)),
        "plain_transitions_per_s": float(settings.batch_size / np.median(plain_s)),
        "cpu_ratio": float(np.median(plain_cpu_s) / np.median(ours_cpu_s)),
    }


def encoded(source: Any, device: str = "cpu") -> dict[str, Any]:
    """All columns of a BatchSource as tensors."""
    import torch

    parts = [source.batch(np.arange(a, min(a + 65_536, len(source)))) for a in range(0, len(source), 65_536)]
    return {k: torch.from_numpy(np.concatenate([part[k] for part in parts])).to(device) for k in parts[0]}


class PlainLoop:
    """What a user would write in torch alone, on encoded states in memory, or in a GPU's."""

    def __init__(self, source: Any, columns: dict[str, Any], cql: CqlConfig, penalty: float) -> None:
        import copy

        import torch
        from ray.rllib.core.columns import Columns

        from seqroute_ray.core.mdp import NUM_MONEY
        from seqroute_ray.training.cql import make_network

        self.columns, self.device = columns, columns[Columns.OBS].device
        self.cql, self.penalty, self.names = cql, penalty, Columns
        self.history = slice(NUM_MONEY, source.network["num_context"])
        settings = {"fcnet_hiddens": cql.hidden, "risk_hidden": cql.risk_hidden, **source.network}
        self.network = make_network(source.state_dim, source.num_actions, settings).to(self.device)
        self.target = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=cql.lr)
        self.order = torch.randperm(len(source), device=self.device)
        self.at = 0

    def run(self, num_steps: int) -> None:
        import torch

        from seqroute_ray.training.cql import Heads, cql_loss, td_targets
        from seqroute_ray.training.reader import ALLOWED, BANKRUPT, NEXT_ALLOWED

        cql, names = self.cql, self.names
        for _ in range(num_steps):
            if self.at + cql.batch_size > len(self.order):
                self.order, self.at = torch.randperm(len(self.order), device=self.device), 0
            rows = self.order[self.at : self.at + cql.batch_size]
            self.at += cql.batch_size
            batch = {name: values[rows] for name, values in self.columns.items()}
            state, next_state = batch[names.OBS], batch[names.NEXT_OBS]
            noise = cql.history_noise * torch.randn_like(state[:, self.history])
            state[:, self.history] += noise
            next_state[:, self.history] += noise
            with torch.no_grad():
                following, following_target = Heads.of(self.network(next_state)), Heads.of(self.target(next_state))
            targets = td_targets(
                batch[names.REWARDS],
                batch[BANKRUPT],
                batch[names.TERMINATEDS],
                following,
                following_target,
                batch[NEXT_ALLOWED],
                cql.gamma,
                self.penalty,
            )
            heads, action = Heads.of(self.network(state)), batch[names.ACTIONS]
            loss = cql_loss(heads, action, targets, cql.td_weight, cql.cql_alpha, self.penalty, batch[ALLOWED])
            self.optimizer.zero_grad()
            loss.total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(self.target.parameters()), list(self.network.parameters()), cql.tau)


def write_stock_rows(settings: Settings) -> None:
    """Some transitions in RLlib's columns: an episode a row, as its reader takes rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seqroute_ray.training.relabeled import RelabeledData

    if settings.stock_rows.exists():
        return
    source = RelabeledData.of(read_dataset(settings.dataset))
    rows = np.random.default_rng(settings.seed).permutation(len(source))[: settings.num_stock_rows]
    batch, width = source.batch(np.sort(rows)), source.state_dim
    lists = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(batch[name].reshape(-1)), width).cast(pa.list_(pa.float32()))
        for name in ("obs", "new_obs")
    }
    table = {
        "eps_id": pa.array([str(i) for i in range(len(rows))]),
        **lists,
        "actions": pa.array(batch["actions"]),
        "rewards": pa.array(batch["rewards"]),
        "terminateds": pa.array(batch["terminateds"]),
        "truncateds": pa.array(np.zeros(len(rows), dtype=bool)),
    }
    pq.write_table(pa.table(table), settings.stock_rows)


def epoch(settings: Settings) -> Measured:
    """One epoch of the stock rows through our reader and learner."""
    import torch

    from seqroute_ray.training.rllib import DiscreteCQLConfig

    torch.set_num_threads(1)
    start_ray()
    num_steps = settings.num_stock_rows // settings.batch_size
    started, cpu = time.perf_counter(), cluster_cpu_s()
    config = DiscreteCQLConfig().offline_data(input_=str(settings.stock_rows), dataset_num_iters_per_learner=num_steps)
    algorithm = config.training(train_batch_size_per_learner=settings.batch_size).build_algo()
    algorithm.train()
    return {
        "rows": num_steps * settings.batch_size,
        "wall_s": time.perf_counter() - started,
        "cpu_s": cluster_cpu_s() - cpu,
    }


def stock(settings: Settings) -> Measured:
    """One epoch of the same rows through RLlib's own pipeline."""
    import gymnasium as gym
    import pyarrow.parquet as pq
    import torch
    from ray.rllib.algorithms.bc import BCConfig

    torch.set_num_threads(1)
    os.environ["RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"] = "1"
    start_ray()
    num_steps = settings.num_stock_rows // settings.batch_size
    width = len(pq.ParquetFile(settings.stock_rows).read_row_group(0, columns=["obs"])["obs"][0])
    num_actions = len(read_header(settings.dataset).catalog)
    started, cpu = time.perf_counter(), cluster_cpu_s()
    config = (
        BCConfig()
        .environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (width,), np.float32),
            action_space=gym.spaces.Discrete(num_actions),
        )
        .offline_data(
            input_=[str(settings.stock_rows)],
            dataset_num_iters_per_learner=num_steps,
            map_batches_kwargs={"concurrency": 2, "num_cpus": 1},
        )
        .training(train_batch_size_per_learner=settings.batch_size)
        .rl_module(model_config={"fcnet_hiddens": list(settings.cql.hidden)})
    )
    algorithm = config.build_algo()
    algorithm.train()
    return {
        "rows": num_steps * settings.batch_size,
        "wall_s": time.perf_counter() - started,
        "cpu_s": cluster_cpu_s() - cpu,
    }


def first_step(settings: Settings) -> Measured:
    """What `seqroute train` does, to its first gradient step; nothing of the rows has been prepared."""
    started = time.perf_counter() - float(Path("/proc/uptime").read_text().split()[0]) + process_start_s()
    import tempfile

    tempfile.tempdir = str(settings.out / "empty")
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    Path(tempfile.tempdir).mkdir(parents=True)
    ray_s = start_ray()
    from seqroute_ray.training.config import TrainConfig
    from seqroute_ray.training.train import train

    shutil.rmtree(settings.out / "policy.checkpoints", ignore_errors=True)
    at: list[float] = []
    cql = replace(settings.cql, num_steps=1)
    train(
        TrainConfig(dataset=settings.dataset, out=settings.out / "policy", cql=cql),
        lambda *_: at.append(time.perf_counter() - started),
    )
    cql = replace(settings.cql, num_steps=settings.steps_a_round)
    train(TrainConfig(dataset=settings.dataset, out=settings.out / "policy", cql=cql))
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return {"seconds_to_first_step": at[0] - ray_s, "ray_s": ray_s, "peak_memory_gb": peak * 1024 / 1e9}


def process_start_s() -> float:
    """When this process began, in seconds since the machine did."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def run(settings: Settings, what: What) -> Measured:
    flags = replace(settings, measure=what)
    command = [sys.executable, __file__]
    for field in fields(flags):
        command += [f"--{field.name.replace('_', '-')}", str(getattr(flags, field.name))]
    print(f"{what} ...", file=sys.stderr, flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(measured), file=sys.stderr, flush=True)
    return measured


def decision() -> Measured:
    """Speed of the numpy policy, measured by benchmarks/decision.py."""
    script = Path(__file__).with_name("decision.py")
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    return {name: value for name, value in measured.items() if name.endswith("_us") or name.endswith("_per_s")}


def main(settings: Settings) -> None:
    measurements = {"interleaved": interleaved, "epoch": epoch, "stock": stock, "first_step": first_step}
    if settings.measure is not None:
        print(json.dumps(measurements[settings.measure](settings)))
        return
    make_dataset(settings)
    write_stock_rows(settings)
    manifest = read_header(settings.dataset).manifest
    throughput, first = run(settings, "interleaved"), run(settings, "first_step")
    ours, theirs = run(settings, "epoch"), run(settings, "stock")
    result = {
        "num_transitions": manifest["num_transitions"],
        "data_fingerprint": manifest["data_fingerprint"],
        "batch_size": settings.batch_size,
        **throughput,
        "throughput_over_stock_rllib": theirs["wall_s"] / ours["wall_s"],
        "cpu_over_stock_rllib": theirs["cpu_s"] / ours["cpu_s"],
        "epoch": ours,
        "stock": theirs,
        **first,
        **decision(),
        "seed": settings.seed,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
