"""Learners whose process or node dies: the run stops with a word on how to go on, and nothing half is kept.

RLlib tells of it by whichever error comes first, and not at all while a checkpoint is written or read: it takes the
learner out of service and goes on with the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from seqroute_ray.core.errors import SeqRouteError, StoppedError

ANSWER_S = 10.0  # within which a learner that lives says so


@contextmanager
def all_learners(group: Any) -> Iterator[None]:
    """Around a call of a LearnerGroup. Raises StoppedError when a learner is lost, else the learner's own error."""
    try:
        yield
    except (RayError, RuntimeError) as error:  # a learner that lives has lost its connection to one that does not
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, SeqRouteError):
            raise cause from error
        num_lost = _num_lost(group)
        if num_lost == 0:
            raise
        raise _stopped(num_lost, group) from error
    check_all_healthy(group)


def check_all_healthy(group: Any) -> None:
    """Raises StoppedError when RLlib has taken a learner out of service."""
    manager = group._worker_manager
    if manager is not None and manager.num_healthy_actors() < manager.num_actors():
        raise _stopped(manager.num_actors() - manager.num_healthy_actors(), group)


def _num_lost(group: Any) -> int:
    """Learners that do not answer."""
    lost = 0
    for learner in group._workers or []:
        try:
            ray.get(learner.apply.remote(_nothing), timeout=ANSWER_S)
        except (RayActorError, ray.exceptions.GetTimeoutError):
            lost += 1
    return lost


def _nothing(_learner: Any) -> None:
    """What a learner that lives can do."""


def _stopped(num_lost: int, group: Any) -> StoppedError:
    return StoppedError(
        f"{num_lost} of {len(group)} learners are lost: a process or its node died (is memory short?); run the same "
        "command again: it goes on from its newest checkpoint"
    )
