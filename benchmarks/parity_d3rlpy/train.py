"""d3rlpy's DiscreteCQL on the transitions of benchmarks/parity.py, which runs this in an environment of its own.

    python train.py DATA.npz SETTINGS.json OUT.npz

DATA: states [M, F], actions [M], rewards [M], terminated [M], episodes in a row; grid [G, F], whose Q-values [G, K] are
written to OUT.
"""

import dataclasses
import json
import sys
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import DiscreteCQLConfig
from d3rlpy.logging import NoopAdapterFactory
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.optimizers import AdamFactory, LRSchedulerFactory
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler


@dataclasses.dataclass()
class Linear(LRSchedulerFactory):  # type: ignore[misc]  # d3rlpy is not in the project's environment
    """Falls to 0 over so many steps."""

    steps: int = 1

    def create(self, optim: Optimizer) -> LRScheduler:
        return LinearLR(optim, 1.0, 0.0, self.steps)

    @staticmethod
    def get_type() -> str:
        return "linear"


def main(data_path: Path, settings_path: Path, out_path: Path) -> None:
    data, settings = np.load(data_path), json.loads(settings_path.read_text())
    torch.set_num_threads(1)
    d3rlpy.seed(settings["seed"])
    dataset = d3rlpy.dataset.MDPDataset(
        observations=data["states"],
        actions=data["actions"],
        rewards=data["rewards"],
        terminals=data["terminated"].astype(np.float32),
        action_space=d3rlpy.constants.ActionSpace.DISCRETE,
        action_size=settings["num_actions"],
    )
    config = DiscreteCQLConfig(
        learning_rate=settings["lr"],
        optim_factory=AdamFactory(
            clip_grad_norm=settings["grad_clip"], lr_scheduler_factory=Linear(steps=settings["num_steps"])
        ),
        encoder_factory=VectorEncoderFactory(hidden_units=settings["hidden"]),
        batch_size=settings["batch_size"],
        gamma=settings["gamma"],
        target_update_interval=settings["target_update_interval"],
        alpha=settings["cql_alpha"],
    )
    algorithm = config.create(device="cpu:0")
    algorithm.fit(
        dataset,
        n_steps=settings["num_steps"],
        n_steps_per_epoch=settings["num_steps"],
        logger_adapter=NoopAdapterFactory(),
        show_progress=False,
    )
    grid = data["grid"]
    columns = [algorithm.predict_value(grid, np.full(len(grid), k)) for k in range(settings["num_actions"])]
    np.savez(out_path, q_values=np.stack(columns, axis=1))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
