"""`ray job submit --working-dir . -- python jobs/promote.py --registry URI [--version V]`"""

import sys

import tyro

from seqroute_ray.cli import run
from seqroute_ray.registry_commands import Promote

if __name__ == "__main__":
    sys.exit(run(lambda: tyro.cli(Promote).run()))
