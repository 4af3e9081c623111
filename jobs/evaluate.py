"""`ray job submit --working-dir . -- python jobs/evaluate.py --policy POLICY --sessions S --out DIR`"""

import sys

from seqroute_ray.core.policy import MANIFEST
from seqroute_ray.core.storage import Location
from seqroute_ray.evaluation.config import EvaluateConfig
from seqroute_ray.job import run_job
from seqroute_ray.stages import evaluate


def inputs(config: EvaluateConfig) -> list[Location]:
    policies = [policy / MANIFEST for policy in (config.policy, config.cloning) if policy]
    return [*policies, *(file for file in (config.sessions, config.fit_sessions, config.tune_sessions) if file)]


if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, evaluate, inputs))
