"""Does one step of a retraining, then kills itself before the step's result is kept: arguments FOLDER STEP."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from seqroute_ray.retraining import rounds
from tests.retraining.support import config_for

folder, fatal = Path(sys.argv[1]), sys.argv[2]
run = vars(rounds)["_run"]


def run_and_die(name: str, *rest: Any) -> Any:
    result = run(name, *rest)
    if name == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


vars(rounds)["_run"] = run_and_die
rounds.retrain(config_for(folder))
