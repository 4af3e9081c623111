"""Ours against d3rlpy's DiscreteCQL: the same transitions, network widths and settings, on an MDP solved exactly.

    python benchmarks/parity.py [--num-seeds 5] [--out runs/parity]

The MDP and its logs are those of narrow_logs.py. Ours is DiscreteCQL of training/rllib.py with an ordinary network, no
masks and no price of a bankruptcy; d3rlpy trains in an environment of its own (parity_d3rlpy/requirements.txt), made
under --out. What differs is left as each has it: our loss is squared, theirs is Huber's; our target network moves with
each step by tau, theirs is copied every 1 / tau steps; ours has a second head, for bankruptcies. Returns are exact, as
shares of the optimum's (mean over BUDGETS); Q-values are compared on states of the data, over all actions; t intervals
of 95 % over seeds. Ends with one JSON line.
"""

import json
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _processes import machine
from budget_mdp import BudgetMdp, at_budgets
from narrow_logs import DEAREST, MIDDLE, NO_PENALTY, Log, as_policy, grid, interval, make_log
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.ray_session import ray_session
from seqroute_ray.training.config import CqlConfig
from seqroute_ray.training.cql import Heads
from seqroute_ray.training.reader import ALLOWED, NEXT_ALLOWED, Batch
from seqroute_ray.training.relabeled import RelabeledData
from seqroute_ray.training.train import train_network

LOGS = ((DEAREST, 1.0), (MIDDLE, 0.1))  # a uniform log and a narrow one
GRAD_CLIP = 10.0  # of DiscreteCQLConfig
THEIRS = Path(__file__).parent / "parity_d3rlpy"


@dataclass(frozen=True, kw_only=True)
class Settings:
    num_seeds: int = 5
    num_steps: int = 1200
    cql_alpha: float = 0.1
    out: Path = Path("runs/parity")


class PlainData(RelabeledData):
    """For a network with one output a model, which may choose any of them."""

    @property
    def network(self) -> dict[str, int]:
        return {}

    def batch(self, rows: IntArray) -> Batch:
        batch = super().batch(rows)
        return {**batch, **{name: np.ones_like(batch[name]) for name in (ALLOWED, NEXT_ALLOWED)}}


def cql_config(settings: Settings, seed: int) -> CqlConfig:
    return CqlConfig(
        hidden=(64, 64), cql_alpha=settings.cql_alpha, batch_size=256, num_steps=settings.num_steps, seed=seed
    )


def our_q_values(data: PlainData, cql: CqlConfig, states: NDArray[np.float32]) -> NDArray[Any]:
    """[G, K] in states [G, F]."""
    network = train_network(data, cql, NO_PENALTY, lambda *_: None)
    with torch.no_grad():
        return np.asarray(Heads.of(network(torch.from_numpy(states))).q_values(NO_PENALTY).numpy())


def their_q_values(
    python: Path, data: PlainData, cql: CqlConfig, states: NDArray[np.float32], folder: Path
) -> NDArray[Any]:
    """[G, K] in states [G, F]."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = data.batch(np.arange(len(data)))
    np.savez(
        folder / "data.npz",
        states=batch[Columns.OBS],
        actions=batch[Columns.ACTIONS],
        rewards=batch[Columns.REWARDS],
        terminated=batch[Columns.TERMINATEDS],
        grid=states,
    )
    settings = {
        "seed": cql.seed,
        "num_actions": data.num_actions,
        "hidden": cql.hidden,
        "lr": cql.lr,
        "grad_clip": GRAD_CLIP,
        "batch_size": cql.batch_size,
        "num_steps": cql.num_steps,
        "gamma": cql.gamma,
        "cql_alpha": cql.cql_alpha,
        "target_update_interval": round(1 / cql.tau),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    files = [folder / name for name in ("data.npz", "settings.json", "q_values.npz")]
    subprocess.run([python, THEIRS / "train.py", *files], check=True, stdout=sys.stderr)
    with np.load(files[-1]) as found:
        return np.asarray(found["q_values"])


def compare(mdp: BudgetMdp, log: Log, settings: Settings, seed: int, python: Path) -> dict[str, float]:
    """One seed on one log."""
    data, cql = PlainData(log.layout, log.features(log.turn_type), log.transitions), cql_config(settings, seed)
    every_state, best = grid(log)[0], at_budgets(mdp.optimum()[0])
    visited = data.batch(np.random.default_rng(seed).integers(len(data), size=5000))[Columns.OBS]
    states = np.concatenate([every_state, visited])
    ours = our_q_values(data, cql, states)
    theirs = their_q_values(python, data, cql, states, settings.out / "exchange")

    def share(q_values: NDArray[Any]) -> float:
        actions = as_policy(q_values[: len(every_state)].argmax(axis=1))
        return float((at_budgets(mdp.value_of(actions)) / best).mean())

    our_share, their_share = share(ours), share(theirs)
    ours, theirs = ours[len(every_state) :], theirs[len(every_state) :]
    return {
        "share_ours": our_share,
        "share_d3rlpy": their_share,
        "share_difference": our_share - their_share,
        "q_correlation": float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]),
        "q_mean_difference": float(np.mean(ours - theirs)),
        "same_action": float(np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1))),
    }


def make_environment(folder: Path) -> Path:
    """Its interpreter; made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
        subprocess.run([python, *install, THEIRS / "requirements.txt"], check=True, stdout=sys.stderr)
        (folder / "ready").touch()
    return python


def main(settings: Settings) -> None:
    started, mdp, logs = time.monotonic(), BudgetMdp.bundled(), []
    python = make_environment(settings.out / "venv").absolute()
    with ray_session():
        for behaviour, exploration in LOGS:
            seeds = range(settings.num_seeds)
            found = [
                compare(mdp, make_log(mdp, behaviour, exploration, seed), settings, seed, python) for seed in seeds
            ]
            figures = {name: interval(np.array([one[name] for one in found])) for name in found[0]}
            logs.append({"behaviour": behaviour, "exploration": exploration, **figures})
            print(json.dumps(logs[-1]), file=sys.stderr)
    common = {"cql_alpha": settings.cql_alpha, "num_steps": settings.num_steps, "num_seeds": settings.num_seeds}
    print(json.dumps({"logs": logs, **common, "seconds": round(time.monotonic() - started), "machine": machine()}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
