"""The price of a bankruptcy: the promise is kept where the pool can keep it, and not at any price."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact, RiskPrices
from seqroute_ray.core.sessions import Sessions, write_sessions
from seqroute_ray.evaluation.baselines import FixedModel, QPolicy
from seqroute_ray.evaluation.calibrate import NUM_REPLICATES, PENALTIES, CalibrateConfig, calibrate
from seqroute_ray.evaluation.metrics import question_replicates
from seqroute_ray.evaluation.replay import ReplayData, replay
from tests.support import make_artefact, make_sessions

BUDGETS = (0.2, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return make_sessions(np.random.default_rng(1).integers(2, 7, 200).tolist())


@pytest.fixture
def config(sessions: Sessions, tmp_path: Path) -> CalibrateConfig:
    write_sessions(Sessions(**{**vars(sessions), "part": np.full(200, "tune")}), tmp_path / "tune.parquet")
    make_artefact().save(tmp_path / "policy")
    return CalibrateConfig(policy=tmp_path / "policy", sessions=tmp_path / "tune.parquet", budgets=BUDGETS)


@dataclass(frozen=True)
class Outcome:
    """One price at one budget, replayed here."""

    quality: float
    bankruptcy: float
    bankruptcy_low: float
    bankruptcy_error: float
    not_below: bool  # the best single model, beyond the interval
    as_good: bool  # as the best single model


def outcomes(sessions: Sessions, budget: float) -> dict[float, Outcome]:
    """By penalty."""
    artefact = make_artefact()
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    budget_nusd = np.full(200, to_nusd(budget * artefact.layout.reference_cost_usd))
    replicates = question_replicates(sessions, NUM_REPLICATES, seed=0)
    weight, of_sessions = replicates.weight, replicates.weight @ replicates.session_share
    single = max((replay(FixedModel(a), data, budget_nusd).quality for a in range(2)), key=np.mean)
    by_penalty = {}
    for penalty in PENALTIES:
        result = replay(QPolicy(artefact.network, RiskPrices((1.0,), (penalty,))), data, budget_nusd)
        differences = weight @ (result.quality - single) / weight.sum(axis=1)
        rates = weight @ result.bankrupting.astype(np.float32) / of_sessions
        by_penalty[penalty] = Outcome(
            quality=float(result.quality.mean()),
            bankruptcy=float(result.bankrupt.mean()),
            bankruptcy_low=float(np.quantile(rates, 0.025)),
            bankruptcy_error=float(rates.std()),
            not_below=float(np.quantile(differences, 0.975)) >= 0,
            as_good=bool(result.quality.mean() >= single.mean()),
        )
    return by_penalty


def test_each_price_follows_the_rule(config: CalibrateConfig, sessions: Sessions) -> None:
    used = set()
    for limit in (0.01, 0.03, 0.8):  # the last: almost kept at the smallest budget
        risk = calibrate(replace(config, max_bankruptcy=limit))
        for budget, chosen in zip(risk.budgets, risk.penalties, strict=True):
            by_penalty = outcomes(sessions, budget)
            keeping = [p for p, o in by_penalty.items() if o.bankruptcy <= limit and o.not_below]
            safe = [p for p in keeping if by_penalty[p].bankruptcy + 1.645 * by_penalty[p].bankruptcy_error <= limit]
            almost = [p for p, o in by_penalty.items() if o.bankruptcy_low <= limit and o.as_good]
            if safe:
                used.add("keeping with a margin")
                assert chosen == min(safe)
            elif keeping:
                used.add("keeping")
                assert chosen in keeping
                assert by_penalty[chosen].bankruptcy == min(by_penalty[p].bankruptcy for p in keeping)
            elif almost:
                used.add("almost")
                assert by_penalty[chosen].bankruptcy == min(by_penalty[p].bankruptcy for p in almost)
                assert chosen in almost
            else:
                used.add("neither")
                assert by_penalty[chosen].quality == max(o.quality for o in by_penalty.values())
    assert used == {"keeping with a margin", "keeping", "almost", "neither"}


def test_the_prices_are_stored_and_the_version_changes(config: CalibrateConfig) -> None:
    before = PolicyArtefact.load(config.policy)
    risk = calibrate(config)
    after = PolicyArtefact.load(config.policy)
    assert after.risk == risk
    assert after.version != before.version
    usd = after.layout.reference_cost_usd
    assert [after.penalty(b * usd) for b in BUDGETS] == pytest.approx(list(risk.penalties))


def test_between_two_budgets_the_price_is_between_theirs() -> None:
    risk = RiskPrices((0.1, 1.0), (20.0, 5.0))
    assert risk.penalty(0.01) == pytest.approx(20.0)
    assert risk.penalty(0.1**0.5) == pytest.approx(10.0)  # the middle of both logarithms
    assert risk.penalty(7.0) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_bankruptcy": 0.0}, r"max_bankruptcy must be in \(0, 1\), got 0.0"),
        ({"budgets": (1.0, 0.5)}, "budgets must be > 0 and rising"),
        ({"budgets": ()}, "budgets must be > 0 and rising"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CalibrateConfig(policy=Path("p"), sessions=Path("s"), **fields)  # type: ignore[arg-type]
