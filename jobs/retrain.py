"""`ray job submit --working-dir . -- python jobs/retrain.py --registry URI --ledger redis://HOST:PORT/DB --out DIR`"""

import sys

from seqroute_ray.job import run_job
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.retraining.rounds import retrain

if __name__ == "__main__":
    sys.exit(run_job(RetrainConfig, retrain))
