"""Decision logs of real ledgers, and registries, for the tests of retraining."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np

from seqroute_ray.core.ledger import Feedback, Ledger
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.registry import Registry
from seqroute_ray.retraining.config import CanaryConfig, GateConfig, RetrainConfig
from tests.serving.ledgers.support import LEASE_S, opened, turn_of
from tests.support import make_artefact

# Both take any policy that is not absurd: what they decide is tested elsewhere.
LENIENT_GATE = GateConfig(
    budgets=(1.0,), max_quality_loss=2.0, max_bankruptcy_rise=2.0, max_cost_rise=100.0, min_sessions=2, min_ess=2.0
)
LENIENT_CANARY = CanaryConfig(share=0.2, min_sessions=10, max_quality_loss=2.0, max_error_rise=2.0, max_cost_rise=100.0)


def registry_with(folder: Path, artefact: PolicyArtefact) -> Registry:
    """One version, current."""
    artefact.save(folder / "first")
    registry = Registry(folder / "registry")
    registry.promote(registry.add(folder / "first", metrics={}, lineage={}).version)
    return registry


def config_for(folder: Path, **fields: object) -> RetrainConfig:
    """Of a folder of registry_with and `serve`; no training unless the fields say so."""
    settings: dict[str, object] = {
        "registry": str(folder / "registry"),
        "out": folder / "retraining",
        "ledger": str(folder / "ledger.sqlite"),
        "candidate": folder / "candidate",
        "gate": LENIENT_GATE,
        "canary": LENIENT_CANARY,
        "test_share": 0.5,
        "runner": "local",
    }
    return RetrainConfig(**{**settings, **fields})  # type: ignore[arg-type]  # fields of any type


def candidate_in(folder: Path, seed: int = 1) -> PolicyArtefact:
    artefact = make_artefact(seed=seed)
    artefact.save(folder / "candidate")
    return artefact


def serve(
    folder: Path, names: Iterator[str], version: str, num_sessions: int = 40, quality: float = 0.5, errors: bool = False
) -> None:
    """Sessions of two turns in the ledger, as a server that explores writes them; each turn is scored."""
    asyncio.run(_serve(str(folder / "ledger.sqlite"), names, version, num_sessions, quality, errors))


async def _serve(
    place: str, names: Iterator[str], version: str, num_sessions: int, quality: float, errors: bool
) -> None:
    async with opened(place) as ledger:
        for name in itertools.islice(names, num_sessions):
            for number in range(2):
                await _turn(ledger, name, number, version, quality, errors)


async def _turn(ledger: Ledger, session: str, number: int, version: str, quality: float, errors: bool) -> None:
    name = uuid4().hex  # a session may go on: a name of before would be the attempt of before
    rng = np.random.default_rng([number, *session.encode()])
    model, cost_nusd = f"model-{rng.integers(2)}", int(rng.integers(1_000_000, 3_000_000))
    await ledger.open(session, 10**9)
    await ledger.reserve(session, name, model, 10**7, LEASE_S)
    turn = turn_of(
        name,
        cost_nusd,
        model=model,
        propensity=0.5,
        policy_version=version,
        finished=not errors,
        failed_attempts=[],
    )
    await ledger.settle(session, name, cost_nusd, turn=turn)
    score = float(np.clip(quality + rng.normal(scale=0.1), 0, 1))
    await ledger.add_feedback(Feedback(target=name, judge="test", score=score, at_s=1.0))


def session_names() -> Iterator[str]:
    return (f"s{number:04d}" for number in itertools.count())
