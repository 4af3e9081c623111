"""`ray job submit --working-dir . -- python jobs/train.py --dataset DIR --out POLICY`"""

import sys

from seqroute_ray.job import run_job
from seqroute_ray.stages import train
from seqroute_ray.training.config import TrainConfig

if __name__ == "__main__":
    sys.exit(run_job(TrainConfig, train))
