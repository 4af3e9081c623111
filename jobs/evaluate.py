"""`ray job submit --working-dir . -- python jobs/evaluate.py --policy POLICY --sessions S --out DIR`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.stages import evaluate

if __name__ == "__main__":
    sys.exit(run(lambda: evaluate(tyro.cli(EvaluateConfig))))
