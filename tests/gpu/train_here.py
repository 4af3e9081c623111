"""A run with the settings of test_gpu.py, as a process: python -m tests.gpu.train_here DATASET OUT NUM_GPUS."""

import sys
from pathlib import Path

from seqroute_ray.ray_session import ray_session
from seqroute_ray.training.train import train
from tests.gpu.test_gpu import config_of

if __name__ == "__main__":
    with ray_session():
        train(config_of(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
