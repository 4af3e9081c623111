"""A stage as a job: its result stands beside its output, and a second submit finds it.

OUT.result.json holds the job's JSON line, the settings, and a key of the settings and the data. Stages that go on where
they were (relabel, train, tune, retrain) look at their own work, which may have been deleted since; the others give
their `inputs`, and are not run again while settings, data and the file are the same.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import tyro

from seqroute_ray import __version__
from seqroute_ray.cli import run
from seqroute_ray.core.storage import Folder, Location, absolute, state_of

SUFFIX = ".result.json"

Result = dict[str, Any]


class Config(Protocol):
    """Settings of a stage that writes to `out`."""

    @property
    def out(self) -> Location: ...


C = TypeVar("C", bound=Config)


def run_job(
    settings: type[C], stage: Callable[[C], Result], inputs: Callable[[C], Sequence[Location]] | None = None
) -> int:
    """Read the settings from the command line, run the stage, keep its result, print it; the exit code.

    inputs: the files that the result follows from, with the settings; None where the stage knows by itself.
    """

    def work() -> Result:
        config = tyro.cli(settings)
        parent, name = absolute(config.out).rstrip("/").rsplit("/", 1)
        place, key = Folder.at(parent), _key(config, inputs(config) if inputs else ())
        if inputs is not None and (found := _found(place, name, key)) is not None:
            return {**found, "found": True}
        result = stage(config)
        if not getattr(config, "dry_run", False):
            kept = {"key": key, "settings": asdict(config), "result": result}  # type: ignore[call-overload]
            place.write(name + SUFFIX, (json.dumps(kept, default=str, indent=1) + "\n").encode())
        return result

    return run(work)


def _key(config: Any, inputs: Sequence[Location]) -> str:
    states = [state_of(location) for location in inputs]
    text = json.dumps([__version__, asdict(config), states], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _found(place: Folder, name: str, key: str) -> Result | None:
    """The result of an earlier job of this key; None when there is none, or its output is gone."""
    if not place.exists(name + SUFFIX):
        return None
    try:
        kept = json.loads(place.read(name + SUFFIX))
    except ValueError:
        return None  # not ours: it is replaced
    if not isinstance(kept, dict) or kept.get("key") != key or not Folder.at(f"{place}/{name}").names():
        return None
    result: Result = kept["result"]
    return result
