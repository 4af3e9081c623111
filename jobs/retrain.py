"""`ray job submit --working-dir . -- python jobs/retrain.py --registry URI --ledger redis://HOST:PORT/DB --out DIR`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.retraining.config import RetrainConfig
from seqroute_ray.retraining.rounds import retrain

if __name__ == "__main__":
    sys.exit(run(lambda: retrain(tyro.cli(RetrainConfig))))
