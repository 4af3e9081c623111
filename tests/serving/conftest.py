"""One replay upstream for all serving tests."""

from collections.abc import Iterator

import pytest

from seqroute_ray.serving.replay_upstream import running_replay_upstream


@pytest.fixture(scope="session")
def upstream_url() -> Iterator[str]:
    with running_replay_upstream() as base_url:
        yield base_url
