"""One Ray cluster and one S3-compatible server for all tests that need them."""

import logging
import os
from collections.abc import Iterator

import hypothesis
import pytest
from pyarrow.fs import S3FileSystem

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
hypothesis.settings.register_profile("busy", deadline=None)  # a machine shared with others says nothing of our speed
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URI of an empty bucket; this process and those it starts reach it by their environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    S3FileSystem(endpoint_override=f"http://127.0.0.1:{port}", allow_bucket_creation=True).create_dir("bucket")
    yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_bucket: str) -> Iterator[str]:  # noqa: ARG001 - workers inherit the environment
    """The address of a local Ray with 4 logical CPUs: with the machine's 2, actors that wait for each other starve."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where processes share the suite: what uses the Ray cluster is for one of them, first; the rest goes by module.

    Modules with a Ray of their own come next: they take longest.
    """

    def group(item: pytest.Item) -> str:
        return "ray" if "ray_cluster" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]

    def rank(item: pytest.Item) -> int:
        return 0 if group(item) == "ray" else 1 if item.get_closest_marker("ray") else 2

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=rank)
