"""`ray job submit --working-dir . -- python jobs/tune.py --dataset DIR --tune-sessions S --out DIR`"""

import sys

from seqroute_ray.job import run_job
from seqroute_ray.stages import tune
from seqroute_ray.training.config import TuneConfig

if __name__ == "__main__":
    sys.exit(run_job(TuneConfig, tune))
