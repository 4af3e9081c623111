"""`ray job submit --working-dir . -- python jobs/train.py --dataset DIR --out POLICY`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.stages import train
from seqroute_ray.training.config import TrainConfig

if __name__ == "__main__":
    sys.exit(run(lambda: train(tyro.cli(TrainConfig))))
