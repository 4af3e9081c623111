"""A server that follows a registry: what the pointers say is at work soon, without a restart."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.registry import Registry
from seqroute_ray.serving.config import load_config
from seqroute_ray.serving.loading import load_policies
from seqroute_ray.serving.turns import TurnService

from .service_support import answered, ask_for, service_over, settings_for
from .support import random_artefact, trio

EVERY_S = 0.02


def two_versions(folder: Path) -> tuple[Registry, list[str]]:
    """A registry with two policies, the first one current."""
    registry, versions = Registry(folder / "registry"), []
    for seed in (1, 2):
        random_artefact(trio(), seed=seed).save(folder / f"policy-{seed}")
        versions.append(registry.add(folder / f"policy-{seed}", metrics={}, lineage={}).version)
    registry.promote(versions[0])
    return registry, versions


async def wait_until(service: TurnService, holds: Callable[[TurnService], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds(service):
            await asyncio.sleep(EVERY_S)


def hash_of(version: str) -> str:
    return version.split("-")[1]


def test_a_promoted_version_and_a_canary_are_at_work_without_a_restart(tmp_path: Path) -> None:
    registry, (first, second) = two_versions(tmp_path)
    policy = {"registry": str(tmp_path / "registry"), "follow_every_s": EVERY_S}

    async def scenario() -> None:
        async with service_over(tmp_path, answered(), answered(), policy=policy) as (service, _):
            assert service.policies.current.version == hash_of(first)
            registry.start_canary(second, 0.999999)
            await wait_until(service, lambda each: len(each.policies.routers) == 2)
            assert (await service.decide(ask_for())).policy_version == hash_of(second)
            registry.roll_back()
            await wait_until(service, lambda each: len(each.policies.routers) == 1)
            assert (await service.decide(ask_for())).policy_version == hash_of(first)
            registry.promote(second)
            await wait_until(service, lambda each: each.policies.current.version == hash_of(second))

    asyncio.run(scenario())


def test_pointers_that_cannot_be_followed_leave_the_policy_at_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, (first, _) = two_versions(tmp_path)
    policy = {"registry": str(tmp_path / "registry"), "follow_every_s": EVERY_S}

    async def scenario() -> None:
        async with service_over(tmp_path, answered(), policy=policy) as (service, _):
            (tmp_path / "registry" / "pointers.json").write_text("{")
            await wait_until(service, lambda _: "registry_not_followed" in caplog.text)
            assert service.policies.current.version == hash_of(first)

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())


def test_a_registry_without_a_current_version_starts_no_server(tmp_path: Path) -> None:
    path = settings_for(tmp_path, "http://127.0.0.1:9/v1", {"policy": {"registry": str(tmp_path / "registry")}})
    config = load_config(path)
    with pytest.raises(ConfigError, match="no version is current; `seqroute registry promote` makes one so"):
        load_policies(config, config.policy)


@pytest.mark.parametrize(
    "policy",
    [{}, {"artefact": "a", "registry": "r"}, {"registry": "r", "canary": {"artefact": "a", "share": 0.1}}],
)
def test_policies_come_from_one_place(tmp_path: Path, policy: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"policy: Value error, (name either|a registry has its own canary)"):
        load_config(settings_for(tmp_path, "http://127.0.0.1:9/v1", {"policy": policy}))
