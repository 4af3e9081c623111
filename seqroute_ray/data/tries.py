"""All shards of a run, whatever dies: bounded tries, and the sessions that no worker survives."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seqroute_ray.core.errors import DataError, StoppedError
from seqroute_ray.data.runners import MAX_BLOCKS, Row, RunnerName, Task, Work, run
from seqroute_ray.data.session_file import SessionFile
from seqroute_ray.data.shards import Shards

logger = logging.getLogger(__name__)
MAX_TRIES = 3  # of a shard whose worker dies, and then of each of its sessions alone
NAMED = 5  # bad sessions that an error names


@dataclass(frozen=True)
class Done:
    """Progress, in shards, sessions and transitions."""

    shards: int
    num_shards: int
    sessions: int
    num_sessions: int
    transitions: int


Progress = Callable[[Done], None]


def run_shards(
    shards: Shards, runner: RunnerName, max_bad_share: float = 0.0, progress: Progress = lambda _done: None
) -> tuple[list[Row], list[str]]:
    """The shards' rows in order, and the sessions that had to be left out.

    A shard whose worker dies is tried MAX_TRIES times, then its sessions one by one; those that kill their worker are
    left out if max_bad_share allows it. Raises DataError naming them otherwise.
    """
    source = shards.sessions
    every = [{"shard": shard} for shard in np.flatnonzero(source.num_sessions).tolist()]
    total = int(source.num_sessions.sum())
    done: dict[int, Row] = {}
    errors: list[str] = []
    sums = np.zeros(2, dtype=np.int64)  # sessions and transitions done

    def work_through(tasks: Sequence[Task]) -> list[Task]:
        for row in run(runner, tasks, shards.write, lambda _task, why: errors.append(why)):
            done[row["shard"]] = row
            sums[:] += row["num_sessions"], row["num_transitions"]
            progress(Done(len(done), len(every), int(sums[0]), total, int(sums[1])))
        return [task for task in tasks if task["shard"] not in done]

    left: Sequence[Task] = every
    for _ in range(MAX_TRIES):
        left = work_through(left)
        if not left:
            return [done[shard] for shard in sorted(done)], []
    bad = crashing_sessions(shards.probe, runner, left, source)
    names = [name for group in bad.values() for name in group]
    if not names:
        raise DataError(
            f"{shards.folder}: shard {left[0]['shard']} fails in {MAX_TRIES} tries though each of its sessions alone "
            f"does not ({errors[-1] if errors else 'its worker died; is memory short?'}); run again to go on"
        )
    if len(names) > max_bad_share * total or len(names) == total:
        raise DataError(
            f"{source.location}: {len(names)} of {total} sessions crash their worker ({', '.join(names[:NAMED])}"
            f"{', ...' if len(names) > NAMED else ''}); mend them, or raise max_bad_share {max_bad_share:g} and "
            "run again: finished shards are kept"
        )
    logger.warning("event=sessions_left_out count=%d first=%s", len(names), names[0])
    last = [{**task, "left_out": bad[task["shard"]]} for task in left]
    some_good = [task for task in last if len(task["left_out"]) < source.num_sessions[task["shard"]]]
    if work_through(some_good):
        raise DataError(f"{shards.folder}: shard {left[0]['shard']} fails without its bad sessions too; run again")
    return [done[shard] for shard in sorted(done)], names


def run_all(runner: RunnerName, names: Sequence[str], work: Work, progress: Callable[[int, int], None]) -> list[Row]:
    """The rows of the tasks {"at": 0}, {"at": 1}, ..., one a name; a row has its task's "at".

    progress: is told how many of them are done. Raises StoppedError by its name when the worker of a task dies in
    MAX_TRIES tries.
    """
    done: dict[int, Row] = {}
    errors: dict[int, str] = {}
    for _ in range(MAX_TRIES):
        tasks = [{"at": at} for at in range(len(names)) if at not in done]
        for row in run(runner, tasks, work, lambda task, why: errors.update({task["at"]: why})):
            done[row["at"]] = row
            progress(len(done), len(names))
    for at, name in enumerate(names):
        if at not in done:
            why = errors.get(at, "its worker died; is memory short?")
            raise StoppedError(f"{name}: fails in {MAX_TRIES} tries ({why}); what is finished is kept")
    return [done[at] for at in range(len(names))]


def crashing_sessions(
    probe: Work, runner: RunnerName, left: Sequence[Task], source: SessionFile
) -> dict[int, list[str]]:
    """The ids of those sessions of some shards that do not survive alone in MAX_TRIES tries, by shard."""
    bad: dict[int, list[str]] = {}
    for shard in (task["shard"] for task in left):
        session_id = source.read(shard).session_id
        waiting = set(range(len(session_id)))
        for _ in range(MAX_TRIES):
            tasks = [{"shard": shard, "session": session} for session in sorted(waiting)]
            # A slice has a Ray task for each: a session that kills its worker takes no other with it.
            for start in range(0, len(tasks), MAX_BLOCKS):
                waiting -= {row["session"] for row in run(runner, tasks[start : start + MAX_BLOCKS], probe)}
        bad[shard] = [str(session_id[session]) for session in sorted(waiting)]
    return bad
