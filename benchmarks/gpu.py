"""Training on a GPU against the same on the CPU and against plain torch on the GPU.

    python benchmarks/gpu.py [--sessions N] [--out DIR]

Sessions are sampled from the bundled outcomes and relabeled once. What is compared takes turns in one process, torch
with one thread on the CPU. Without a GPU the CPU's figures alone. Ends with one JSON line.

workloads    by batch size and width of both heads' hidden layers: steps and transitions a second of
             DiscreteCQL.train() on the GPU, on the CPU, and of the plain loop of train.py, whose encoded states all lie
             in the GPU's memory; share of the GPU learner's time that waits for the next batch; GPU memory it takes
ahead        the GPU learner by number of batches in the making at a time; what is made when a round begins counts for
             nothing, a hundredth of it a batch
first_step   from the start of the process to the first gradient step, Ray's own start apart
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import train
import tyro
from _processes import machine

from seqroute_ray.core.dataset import read_header
from seqroute_ray.training.config import CqlConfig

Measured = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    sessions: int = 10_000
    round_s: float = 0.6  # about so long each, in turns
    num_rounds: int = 4
    max_batch: int = 65_536  # larger workloads are left out
    max_width: int = 1024
    seed: int = 0
    out: Path = Path("runs/train")


@dataclass(frozen=True)
class Workload:
    batch_size: int
    width: int
    cpu: bool = True  # whether the CPU is measured: a step of the others takes it seconds


WORKLOADS = (
    Workload(1024, 64),  # the default
    Workload(4096, 64),
    Workload(16_384, 64),
    Workload(65_536, 64, cpu=False),
    Workload(4096, 256),
    Workload(16_384, 1024, cpu=False),
)
TRIED_STEPS = 6  # which tell how long a step takes
AHEAD_OF = Workload(4096, 64)
AHEAD, AHEAD_STEPS = (1, 2, 4), 100


class Ours:
    """DiscreteCQL on one device, some steps at a time."""

    def __init__(self, open_rows: Callable[[], Any], cql: CqlConfig, penalty: float, num_steps: int) -> None:
        from seqroute_ray.training.train import algorithm_config

        config = algorithm_config(open_rows, cql, penalty)
        self.num_steps = num_steps
        self.algorithm = config.offline_data(dataset_num_iters_per_learner=num_steps).build_algo()

    def run(self) -> None:
        self.algorithm.train()


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Yields [seconds that learners of this process waited for a batch]."""
    from seqroute_ray.training.reader import ShuffledBatches

    original, waited = ShuffledBatches.__iter__, [0.0]

    def timed(batches: Any) -> Iterator[Any]:
        iterator = original(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            waited[0] += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    ShuffledBatches.__iter__ = timed  # type: ignore[method-assign]
    yield waited
    ShuffledBatches.__iter__ = original  # type: ignore[method-assign]


def finished() -> float:
    """The time when the GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(settings: Settings, workload: Workload, rows: "Rows", device: str) -> Measured:
    """The GPU's learner, plain torch there and the CPU's learner, in turns; without a GPU the CPU's alone."""
    with waiting() as waited, ExitStack() as stack:
        contenders, memory_mb = contenders_of(settings, workload, rows, device, stack)
        step_s: dict[str, list[float]] = {name: [] for name in contenders}
        gpu_s, waited_s = 0.0, 0.0
        for _ in range(settings.num_rounds):
            for name, (run, num_steps) in contenders.items():
                waited[0], started = 0.0, finished()
                run()
                seconds = finished() - started
                step_s[name].append(seconds / num_steps)
                if name == "gpu":
                    gpu_s, waited_s = gpu_s + seconds, waited_s + waited[0]
    measured: Measured = {"batch_size": workload.batch_size, "width": workload.width}
    for name, values in step_s.items():
        measured[f"{name}_steps_per_s"] = 1 / float(np.median(values))
        measured[f"{name}_transitions_per_s"] = workload.batch_size / float(np.median(values))
    if device == "cuda":
        measured |= {"waiting_share": waited_s / gpu_s, "gpu_memory_mb": memory_mb}
        for other in step_s.keys() - {"gpu"}:
            ratios = np.array(step_s[other]) / np.array(step_s["gpu"])
            measured[f"gpu_over_{other}"] = float(np.median(ratios))
            measured[f"gpu_over_{other}_range"] = [float(ratios.min()), float(ratios.max())]
    print(json.dumps(measured), file=sys.stderr, flush=True)
    return measured


def contenders_of(
    settings: Settings, workload: Workload, rows: "Rows", device: str, stack: ExitStack
) -> tuple[dict[str, tuple[Callable[[], None], int]], float]:
    """What runs a round of each, warm, and its steps; MB of GPU memory that ours takes."""
    import torch

    cql = rows.cql(settings, workload)
    contenders: dict[str, tuple[Callable[[], None], int]] = {}
    memory_mb = 0.0
    if device == "cuda":
        plain = train.PlainLoop(rows.source, rows.columns, cql, rows.penalty)
        num_steps = plain_steps(plain, settings.round_s)
        contenders["plain"] = partial(plain.run, num_steps), num_steps
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours = warm(rows, replace(cql, num_gpus_per_learner=1), settings.round_s, stack)
        memory_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        contenders["gpu"] = ours.run, ours.num_steps
    if workload.cpu:
        on_cpu = warm(rows, cql, settings.round_s, stack)
        contenders["cpu"] = on_cpu.run, on_cpu.num_steps
    return contenders, memory_mb


def plain_steps(plain: train.PlainLoop, seconds: float) -> int:
    """How many steps take so long, after some that warm up."""
    plain.run(TRIED_STEPS)
    started = finished()
    plain.run(TRIED_STEPS)
    return max(2, int(seconds * TRIED_STEPS / (finished() - started)))


def warm(rows: "Rows", cql: CqlConfig, seconds: float, stack: ExitStack) -> Ours:
    """A learner, with its reader running, of so many steps a round as take so long."""
    tried = Ours(rows.open, cql, rows.penalty, TRIED_STEPS)
    tried.run()
    started = finished()
    tried.run()
    num_steps = max(2, int(seconds * TRIED_STEPS / (finished() - started)))
    tried.algorithm.stop()
    learner = Ours(rows.open, cql, rows.penalty, num_steps)
    stack.callback(learner.algorithm.stop)
    learner.run()
    return learner


def by_batches_ahead(settings: Settings, rows: "Rows", device: str) -> list[Measured]:
    """The learner at AHEAD_OF by how many batches are in the making, in turns."""
    from seqroute_ray.training.reader import NUM_AHEAD

    cql = replace(rows.cql(settings, AHEAD_OF), num_gpus_per_learner=float(device == "cuda"))
    kept, learners = NUM_AHEAD[device], {}
    for ahead in AHEAD:
        NUM_AHEAD[device] = ahead
        learners[ahead] = Ours(rows.open, cql, rows.penalty, AHEAD_STEPS if device == "cuda" else 10)
        learners[ahead].run()  # makes its reader
    NUM_AHEAD[device] = kept
    step_s: dict[int, list[float]] = {ahead: [] for ahead in AHEAD}
    for _ in range(min(3, settings.num_rounds)):
        for ahead, learner in learners.items():
            started = finished()
            learner.run()
            step_s[ahead].append((finished() - started) / learner.num_steps)
    measured = [
        {"ahead": ahead, "transitions_per_s": AHEAD_OF.batch_size / float(np.median(values))}
        for ahead, values in step_s.items()
    ]
    print(json.dumps(measured), file=sys.stderr, flush=True)
    return measured


class Rows:
    """The dataset as learners draw from it, and encoded on the device where plain torch has it."""

    def __init__(self, dataset: Path, device: str) -> None:
        from seqroute_ray.training.sources import open_dataset

        self.penalty = read_header(dataset).bankruptcy_penalty
        self.open = partial(open_dataset, dataset, "uniform", 1024.0)
        self.source = self.open()
        self.columns = train.encoded(self.source, device) if device == "cuda" else {}

    def cql(self, settings: Settings, workload: Workload) -> CqlConfig:
        widths = (workload.width, workload.width)
        return CqlConfig(hidden=widths, risk_hidden=widths, batch_size=workload.batch_size, seed=settings.seed)


def main(settings: Settings) -> None:
    import torch

    common = train.Settings(num_sessions=settings.sessions, out=settings.out, seed=settings.seed)
    started = time.perf_counter()
    train.make_dataset(common)
    print(f"dataset {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = {device: train.run(replace(common, num_gpus=float(device == "cuda")), "first_step")}
    if device == "cuda":
        first["cpu"] = train.run(common, "first_step")
    torch.set_num_threads(1)
    train.start_ray()
    rows = Rows(common.dataset, device)
    manifest = read_header(common.dataset).manifest
    workloads = [w for w in WORKLOADS if w.batch_size <= settings.max_batch and w.width <= settings.max_width]
    result = {
        "num_transitions": manifest["num_transitions"],
        "data_fingerprint": manifest["data_fingerprint"],
        "workloads": [measure(settings, workload, rows, device) for workload in workloads],
        "ahead": by_batches_ahead(settings, rows, device),
        "first_step": first,
        "encoded_gpu_mb": sum(c.nbytes for c in rows.columns.values()) / 2**20,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "seed": settings.seed,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
