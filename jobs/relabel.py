"""`ray job submit --working-dir . -- python jobs/relabel.py --sessions S --out DIR`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.data.relabel import RelabelConfig
from seqroute_ray.stages import relabel

if __name__ == "__main__":
    sys.exit(run(lambda: relabel(tyro.cli(RelabelConfig))))
