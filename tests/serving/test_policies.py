"""Which policy decides: canary and shadow by session, exploration with its propensity, a swap under running turns."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import ArtefactError, ConfigError
from seqroute_ray.serving.config import PolicySettings
from seqroute_ray.serving.policies import share_of

from .service_support import answer, answered, ask_for, service_over
from .support import random_artefact, spec, trio


def other_policy(folder: Path, seed: int = 1) -> str:
    """Another policy of the same pool, saved."""
    path = folder / f"policy-{seed}"
    random_artefact(trio(), seed=seed).save(path)
    return str(path)


def with_policy(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"policy": {"artefact": str(folder / "policy"), **fields}}


def test_shares_of_sessions_are_uniform_and_the_same_everywhere() -> None:
    shares = np.sort([share_of(f"local:session-{number}") for number in range(4000)])
    assert 0 <= shares[0] < shares[-1] < 1
    assert np.abs(shares - np.arange(4000) / 4000).max() < 1.63 / 4000**0.5  # Kolmogorov-Smirnov, 1 %
    assert share_of("local:s") == 0.5062377609157387  # of its SHA-256


def test_a_canary_decides_for_its_share_of_sessions_and_keeps_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        canary = {"artefact": other_policy(tmp_path), "share": 0.4}
        async with service_over(tmp_path, answered(), **with_policy(tmp_path, canary=canary)) as (service, _):
            current, version = service.policies.current.version, random_artefact(trio(), seed=1).version
            for number in range(12):
                session = f"s{number}"
                expected = "canary" if share_of(f"local:{session}") < 0.4 else "current"
                for turn in range(2):
                    decision_id = f"dec_{number}_{turn}"
                    await answer(service, ask_for(session=session, decision_id=decision_id, max_tokens=20))
                    record = await service.decision(decision_id, "local")
                    assert record["policy"] == expected
                    assert record["policy_version"] == (version if expected == "canary" else current)
            assert version != current

    asyncio.run(scenario())
    sides = {share_of(f"local:s{number}") < 0.4 for number in range(12)}
    assert sides == {True, False}


def test_a_shadow_only_looks(tmp_path: Path) -> None:
    async def scenario() -> None:
        shadow = {"artefact": other_policy(tmp_path, seed=2), "share": 0.5}
        async with service_over(tmp_path, answered(), **with_policy(tmp_path, shadow=shadow)) as (service, _):
            seen = []
            for number in range(12):
                ask = ask_for(session=f"s{number}", decision_id=f"dec_{number}", max_tokens=20)
                expected = await service.decide(ask)
                await answer(service, ask)
                record = await service.decision(f"dec_{number}", "local")
                assert (record["model"], record["policy"]) == (expected.model, "current")
                assert ("shadow" in record) == (1 - share_of(f"local:s{number}") <= 0.5)
                seen += [record["shadow"]] if "shadow" in record else []
            books = await service.ledger.books("local:s0")
        version = random_artefact(trio(), seed=2).version
        assert {each["policy_version"] for each in seen} == {version}
        assert {each["model"] for each in seen} <= set(trio().names)
        assert 0 < len(seen) < 12
        assert len(books.attempts) == 1

    asyncio.run(scenario())


def test_a_shadow_looks_at_the_money_before_the_turn_and_its_refusals_do_not_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        poor = tmp_path / "dear-only"
        random_artefact(Catalog(trio().models[2:])).save(poor)
        for artefact, budget_nusd in ((other_policy(tmp_path, seed=2), 10**7), (str(poor), 20_000)):
            shadow = {"artefact": artefact, "share": 1.0}
            async with service_over(tmp_path, answered(), **with_policy(tmp_path, shadow=shadow)) as (service, _):
                ask = ask_for(session=artefact[-5:], decision_id=artefact, budget_nusd=budget_nusd)
                result = await answer(service, ask)
                record = await service.decision(artefact, "local")
                metrics = (service.metrics.exposition() or b"").decode()
            if budget_nusd == 10**7:  # the turn held all of it
                assert result["seqroute"]["decision"]["reserve_usd"] > 0.0099
                assert record["shadow"]["model"] in trio().names
            else:
                assert record["shadow"]["refused"] == "BudgetExhaustedError"
            assert "seqroute_budget_refusals_total{" not in metrics

    asyncio.run(scenario())


def test_exploration_is_in_the_record_with_its_propensity(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered(), **with_policy(tmp_path, epsilon=0.6)) as (service, _):
            greedy = (await service.decide(ask_for(max_tokens=5, budget_nusd=10**9))).model
            for number in range(30):
                ask = ask_for(session=f"s{number}", decision_id=f"dec_{number}", max_tokens=5, budget_nusd=10**9)
                assert (await service.decide(ask)).model == greedy  # /v1/route does not explore
                await answer(service, ask)
                record = await service.decision(f"dec_{number}", "local")
                assert (record["chosen_by"] == "policy") == (record["model"] == greedy)
                expected = 0.2 + (0.4 if record["model"] == greedy else 0)
                assert record["propensity"] == pytest.approx(expected)
            pinned = await answer(service, ask_for(model=greedy, decision_id="dec_pinned", budget_nusd=10**7))
            explored = [(await service.decision(f"dec_{n}", "local"))["chosen_by"] for n in range(30)]
        assert set(explored) == {"policy", "exploration"}  # a false alarm in 10 million runs
        assert (pinned["seqroute"]["decision"]["chosen_by"], pinned["seqroute"]["decision"]["propensity"]) == (
            "pinned",
            1.0,
        )

    asyncio.run(scenario())


def test_a_swap_holds_from_the_next_turn_on_and_running_turns_end_with_theirs(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with service_over(tmp_path, [gate, *answered()], answered()) as (service, provider):
            before = service.policies.current.version
            running = asyncio.create_task(answer(service, ask_for(max_tokens=20)))
            await provider.asked()
            await service.swap(PolicySettings(artefact=other_policy(tmp_path)))
            after = service.policies.current.version
            beside = await answer(service, ask_for(decision_id="dec_2", max_tokens=20))
            gate.set()
            first = await running
        assert before != after == random_artefact(trio(), seed=1).version
        assert first["seqroute"]["decision"]["policy_version"] == before
        assert beside["seqroute"]["decision"]["policy_version"] == after
        assert first["seqroute"]["turn"] in (0, 1)

    asyncio.run(scenario())


def test_a_swap_to_the_same_settings_loads_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service_over(tmp_path, answered()) as (service, _):
            policies = service.policies
            await service.swap(policies.settings)
            assert service.policies is policies

    asyncio.run(scenario())


def test_a_policy_that_cannot_be_used_leaves_the_old_one_at_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        unknown = tmp_path / "unknown-model"
        random_artefact(Catalog((spec("nobody-serves-it", 1.0, 1.0),))).save(unknown)
        dearer = tmp_path / "other-price"
        random_artefact(Catalog((spec(trio().names[0], 9.0, 9.0),))).save(dearer)
        broken = tmp_path / "broken"
        shutil.copytree(other_policy(tmp_path), broken)
        (broken / "weights.npz").write_bytes(b"no weights")
        async with service_over(tmp_path, answered()) as (service, _):
            before = service.policies
            for path, kind, message in (
                (tmp_path / "none", ArtefactError, "no manifest"),
                (broken, ArtefactError, "damaged"),
                (unknown, ConfigError, "which no upstream serves"),
                (dearer, ConfigError, "the policy was trained for 9"),
            ):
                with pytest.raises(kind, match=message):
                    await service.swap(PolicySettings(artefact=str(path)))
                assert service.policies is before
            result = await answer(service, ask_for(max_tokens=20))
        assert result["seqroute"]["decision"]["policy_version"] == before.current.version

    asyncio.run(scenario())


def test_a_session_goes_on_under_a_policy_of_other_features(tmp_path: Path) -> None:
    async def scenario() -> None:
        other = tmp_path / "more-types"
        random_artefact(trio(), types=("prose", "sums", "verse")).save(other)
        async with service_over(tmp_path, answered()) as (service, _):
            await answer(service, ask_for(max_tokens=20))
            await service.swap(PolicySettings(artefact=str(other)))
            second = await answer(service, ask_for(decision_id="dec_2", max_tokens=20))
            third = await answer(service, ask_for(decision_id="dec_3", max_tokens=20))
            account = await service.ledger.account("local:s")
        assert (second["seqroute"]["turn"], third["seqroute"]["turn"]) == (1, 2)
        assert len(account.summary_sum) == 4

    asyncio.run(scenario())
