"""Ray for one command: joins a cluster when told of one, else starts a small local one, quietly."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL_LOGICAL_CPUS = 4  # at least: with 2, actors that wait for each other starve


@contextmanager
def ray_session() -> Iterator[bool]:
    """Ray while the block runs; stopped in the end if a local one was started here, which is what it yields.

    RAY_ADDRESS (which `ray job submit` sets) names the cluster to join; without it a local one is started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A replica's turns hardly block, longer work has threads: in Serve's own event loop they cost a sixth less CPU.
    os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    import ray

    if ray.is_initialized():
        yield False
        return
    joins = bool(os.environ.get("RAY_ADDRESS"))
    if joins:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        num_cpus = max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1)
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init("local", num_cpus=num_cpus, **quiet)  # without "local" it joins what `ray start` left here
    for library in ("data", "rllib", "tune", "serve"):  # their notes on start-up concern Ray's developers
        logging.getLogger(f"ray.{library}").setLevel(logging.ERROR)
    logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)  # what it says of a lost learner is
    # pages long; training says it in a line
    try:
        yield not joins
    finally:
        ray.shutdown()
