"""Who does the work: Ray Data's workers, or this process. Work is idempotent: a task may be done twice."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, nullcontext
from typing import Any, Literal

from seqroute_ray.core.errors import ConfigError, DataError, SeqRouteError, StoppedError

Task = dict[str, Any]
Row = dict[str, Any]  # what became of a task
Work = Callable[[Task], Row]
RunnerName = Literal["ray", "local"]
MAX_BLOCKS = 2000  # tasks of one Ray task where there are more: the driver keeps something for each block
REFUSED, CRASHED, KIND, TASK, WORKER = "refused", "crashed", "kind", "task", "worker"  # keys of a row
ERRORS = {error.__name__: error for error in (ConfigError, DataError, StoppedError)}  # that keep their class


def run(
    runner: RunnerName,
    tasks: Sequence[Task],
    work: Work,
    failed: Callable[[Task, str], object] = lambda _task, _why: None,
) -> Iterator[Row]:
    """The rows of the tasks as they are done, in any order; those whose worker died or raised an error have none.

    failed: is told of errors. A SeqRouteError of the work is raised: such an error is not for trying again.
    """
    if not tasks:  # Ray Data makes no dataset of nothing
        return
    rows = _run_on_ray(tasks, work) if runner == "ray" else _run_here(tasks, work)
    for row in rows:
        if REFUSED in row:
            raise ERRORS.get(row[KIND], DataError)(row[REFUSED])
        if CRASHED in row:
            failed(row[TASK], row[CRASHED])
        else:
            yield row


def _attempt(work: Work, task: Task) -> Row:
    try:
        return work(task)
    except SeqRouteError as error:
        return {REFUSED: str(error), KIND: type(error).__name__}
    except Exception as error:  # whatever a session does to the kernel, the others go on
        return {CRASHED: f"{type(error).__name__}: {' '.join(str(error).split())}", TASK: task}


def _run_here(tasks: Sequence[Task], work: Work) -> Iterator[Row]:
    for task in tasks:
        yield {WORKER: "local", **_attempt(work, task)}


def _run_on_ray(tasks: Sequence[Task], work: Work) -> Iterator[Row]:
    """One Ray Data row a task. The session file is read inside the tasks, by row group: no read of Ray's is needed."""
    import ray

    here = os.getcwd()

    def attempt(item: dict[str, str]) -> dict[str, str]:  # as JSON: Arrow would give all rows the same fields
        with chdir(here) if os.path.isdir(here) else nullcontext():  # a relative path means what it means to the driver
            row = _attempt(work, json.loads(item["task"]))
        return {"row": json.dumps({WORKER: ray.get_runtime_context().get_worker_id(), **row})}

    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.max_errored_blocks
    # Ray Data retries without end and stops at the first error; here a lost task is the caller's to see and to repeat.
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    ray_log = logging.getLogger("ray.data")
    level = ray_log.level
    ray_log.setLevel(logging.CRITICAL)
    try:
        items = [{"task": json.dumps(task)} for task in tasks]
        dataset = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS))
        with warnings.catch_warnings():  # Ray 2.64 takes max_retries away: bound the tries in another way then
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            mapped = dataset.map(attempt, max_retries=0)
        for item in mapped.iter_rows():
            yield json.loads(item["row"])
    finally:
        context.enable_progress_bars, context.max_errored_blocks = before
        ray_log.setLevel(level)
