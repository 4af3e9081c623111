"""Whether all nodes that may get part of a stage's work see its files: asked before the work.

A node that sees another disk at the same path would fail late, or write its part where nobody looks for it.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.storage import Folder, Location, local_path, resolve
from seqroute_ray.data.receipts import write_or_refuse

logger = logging.getLogger(__name__)
TIMEOUT_S = 60.0  # for a node's answer; it may have to start a worker first
WAY_OUT = "use a folder that every node sees, or a URI such as s3://BUCKET/FOLDER"


def check_shared(
    reads: Sequence[Location], writes: Sequence[Location] = (), needs: Mapping[str, float] | None = None
) -> None:
    """Raises ConfigError when a node does not see what this process sees. Ray must be initialised.

    reads: files. writes: folders or files, there already or not. needs: resources of a worker (one CPU): nodes without
    them get no work. Nothing is asked where there are URIs only, or one node.
    """
    files = {path: _size(path) for path in _local(reads)}
    places = _local(writes)
    nodes = _other_nodes(needs or {"CPU": 1}) if files or places else []
    if not nodes:
        return
    with ExitStack() as marks:
        marked = {marks.enter_context(_mark(Path(place))): place for place in places}
        expected = files | dict.fromkeys(marked, 0)
        for node, sizes in _ask(nodes, list(expected)):
            for (path, size), seen in zip(expected.items(), sizes, strict=True):
                if seen != size:
                    what = "is not there" if seen is None else "is another file"
                    raise ConfigError(
                        f"{marked.get(path, path)}: {what} on node {node}, which may get part of the work; {WAY_OUT}"
                    )


def _local(locations: Sequence[Location]) -> list[str]:
    """Paths, absolute; symbolic links stay, for they may lead elsewhere on another node."""
    return [resolve(location)[1] for location in locations if local_path(location) is not None]


def _other_nodes(needs: Mapping[str, float]) -> list[dict[str, Any]]:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != here
        and all(node["Resources"].get(name, 0) >= amount for name, amount in needs.items())
    ]


def _ask(nodes: Sequence[Mapping[str, Any]], paths: list[str]) -> Iterator[tuple[str, list[int | None]]]:
    """Names of nodes, and the sizes of the files there. A node that dies meanwhile gets no work, and says nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(_sizes)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeName']} ({node['NodeID'][:8]})"
        asked[name] = look.options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(paths)
    for name, answer in asked.items():
        try:
            yield name, ray.get(answer, timeout=TIMEOUT_S)
        except ray.exceptions.RayError as error:
            logger.warning("event=node_does_not_answer node=%s error=%s", name, type(error).__name__)


def _sizes(paths: list[str]) -> list[int | None]:
    return [_size(path) for path in paths]


def _size(path: str) -> int | None:
    """Bytes of a file; 0 of a folder; None where there is neither."""
    if os.path.isdir(path):
        return 0
    return os.path.getsize(path) if os.path.exists(path) else None


@contextmanager
def _mark(place: Path) -> Iterator[str]:
    """An empty file that only the nodes on this disk see, in the folder or in the first one above that is there."""
    folder = next(path for path in (place, *place.parents) if path.is_dir())
    name = f".seqroute-{uuid4().hex}"
    write_or_refuse(Folder.at(folder), name, b"")
    try:
        yield str(folder / name)
    finally:
        (folder / name).unlink(missing_ok=True)
