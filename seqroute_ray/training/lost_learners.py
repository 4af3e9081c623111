"""Learners whose process or node dies: the run stops with a word on how to go on, and nothing half is kept.

RLlib tells of it by whichever error comes first; not at all while a checkpoint is written or read, for it takes the
learner out of service and goes on with the rest; and half an hour late when a node falls silent, for the other learners
wait for its gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from seqroute_ray.core.errors import SeqRouteError, StoppedError

WATCH_S = 5.0  # between looks at learners at work
ANSWER_S = 10.0  # within which a learner that lives says so


@contextmanager
def all_learners(group: Any) -> Iterator[None]:
    """Around a call of a LearnerGroup. Raises StoppedError when a learner is lost, else the learner's own error."""
    learners = group._workers or []
    with _watched(learners) as lost:
        try:
            yield
        except (RayError, RuntimeError) as error:  # a learner that lives has lost its connection to one that does not
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, SeqRouteError):
                raise cause from error
            num_lost = len(lost) or sum(_is_lost(_ask(learner), ANSWER_S) for learner in learners)
            if num_lost == 0:
                raise
            raise _stopped(num_lost, learners) from error
    if learners and group._worker_manager.num_healthy_actors() < len(learners):
        raise _stopped(len(learners) - group._worker_manager.num_healthy_actors(), learners)


@contextmanager
def _watched(learners: Sequence[Any]) -> Iterator[list[Any]]:
    """Yields the learners that died in the block, so far; the first ends them all, and with them the block's call."""
    done, lost = Event(), list[Any]()
    watch = Thread(target=_watch, args=(learners, done, lost), daemon=True)
    if learners:
        watch.start()
    try:
        yield lost
    finally:
        done.set()


def _watch(learners: Sequence[Any], done: Event, lost: list[Any]) -> None:
    asked: dict[int, Any] = {}  # what each has not answered yet: it does when it has time
    while not done.wait(WATCH_S):
        asked = {i: asked[i] if i in asked else _ask(learner) for i, learner in enumerate(learners)}
        answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=0)
        lost += [learners[i] for i, answer in asked.items() if answer in answered and _is_lost(answer, ANSWER_S)]
        if lost:
            for learner in learners:
                ray.kill(learner)
            return
        asked = {i: answer for i, answer in asked.items() if answer not in answered}


def _ask(learner: Any) -> Any:
    """A reference to what a learner that lives answers."""
    return learner.apply.remote(_nothing)


def _nothing(_learner: Any) -> None: ...


def _is_lost(answer: Any, timeout_s: float) -> bool:
    try:
        ray.get(answer, timeout=timeout_s)
    except (RayActorError, GetTimeoutError):
        return True
    return False


def _stopped(num_lost: int, learners: Sequence[Any]) -> StoppedError:
    return StoppedError(
        f"{num_lost} of {len(learners)} learners are lost: a process or its node died (is memory short?); run the same "
        "command again: it goes on from its newest checkpoint"
    )
