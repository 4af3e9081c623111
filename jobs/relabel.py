"""`ray job submit --working-dir . -- python jobs/relabel.py --sessions S --out DIR`"""

import sys

from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.job import run_job
from seqroute_ray.stages import relabel

if __name__ == "__main__":
    sys.exit(run_job(RelabelConfig, relabel))
