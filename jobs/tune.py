"""`ray job submit --working-dir . -- python jobs/tune.py --dataset DIR --tune-sessions S --out DIR`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.stages import tune
from seqroute_ray.training.config import TuneConfig

if __name__ == "__main__":
    sys.exit(run(lambda: tune(tyro.cli(TuneConfig))))
