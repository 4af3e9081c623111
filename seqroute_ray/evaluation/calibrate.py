"""Choose the price of a bankruptcy, by budget, on the tune part: how thrifty the policy must be to keep a promise.

At each budget the lowest price is taken that keeps bankruptcies within `max_bankruptcy` with a margin for questions
not yet seen (a confidence of 95 %), as long as quality is not below the best single model's beyond the paired interval.
Where no price has that margin, the one of the fewest bankruptcies among those that keep it without. Where no price does
both, the price of the fewest bankruptcies is taken whose quality is not below the best single model's at all, if that
is within `max_bankruptcy` as far as the tune part can tell. Otherwise the pool has no model cheap enough for a promise,
and the price that gives the most quality is taken.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seqroute_ray.core.errors import ConfigError
from seqroute_ray.core.money import to_nusd
from seqroute_ray.core.policy import PolicyArtefact, RiskPrices
from seqroute_ray.core.sessions import read_sessions
from seqroute_ray.evaluation.baselines import FixedModel, QPolicy
from seqroute_ray.evaluation.metrics import Measured, Replicates, interval, measure, question_replicates
from seqroute_ray.evaluation.replay import Policy, ReplayData, replay

PENALTIES = tuple(round(0.5 * 2 ** (step / 3), 2) for step in range(26))  # 0.5 to 161 turns of full quality
NUM_REPLICATES = 200  # bootstrap draws of questions
MARGIN = 1.645  # standard errors of a bankruptcy rate: 95 % of a normal distribution lie below


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """Risk prices of an artefact. Each field is a flag of `seqroute calibrate`."""

    policy: Path  # artefact folder; its manifest is rewritten
    sessions: Path  # session Parquet; its tune part is used, or all when it names no parts; with every model's outcome
    max_bankruptcy: float = 0.03  # share of sessions, wanted at every budget
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)  # multiples of the reference cost

    def __post_init__(self) -> None:
        if not 0 < self.max_bankruptcy < 1:
            raise ConfigError(f"max_bankruptcy must be in (0, 1), got {self.max_bankruptcy}")
        if not self.budgets or min(self.budgets) <= 0 or list(self.budgets) != sorted(self.budgets):
            raise ConfigError(f"budgets must be > 0 and rising, got {self.budgets}")


def calibrate(config: CalibrateConfig) -> RiskPrices:
    """Choose the prices and store them in the artefact. Raises DataError, ArtefactError."""
    artefact = PolicyArtefact.load(config.policy)
    sessions = read_sessions(config.sessions).of_part("tune")
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    replicates = question_replicates(sessions, NUM_REPLICATES, seed=0)
    penalties = tuple(
        choose_penalty(artefact, data, replicates, budget, config.max_bankruptcy) for budget in config.budgets
    )
    risk = RiskPrices(config.budgets, penalties)
    replace(artefact, risk=risk).save(config.policy)
    return risk


def choose_penalty(
    artefact: PolicyArtefact, data: ReplayData, replicates: Replicates, budget: float, max_bankruptcy: float
) -> float:
    """The price at one budget, in multiples of the reference cost."""
    budget_nusd = np.full(data.sessions.num_sessions, to_nusd(budget * artefact.layout.reference_cost_usd))

    def outcome(policy: Policy) -> Measured:
        return measure(replay(policy, data, budget_nusd), data.sessions, replicates)

    best = max((outcome(FixedModel(a)) for a in range(len(artefact.catalog))), key=lambda single: single.quality)
    outcomes = {penalty: outcome(QPolicy(artefact.network, RiskPrices((1.0,), (penalty,)))) for penalty in PENALTIES}

    def keeps(ours: Measured) -> bool:
        _, high = interval(ours.quality_replicates - best.quality_replicates)
        return ours.bankruptcy_rate <= max_bankruptcy and high >= 0

    keeping = [penalty for penalty, ours in outcomes.items() if keeps(ours)]
    for penalty in keeping:
        if outcomes[penalty].bankruptcy_rate + MARGIN * outcomes[penalty].bankruptcy_error <= max_bankruptcy:
            return penalty
    if keeping:
        return min(keeping, key=lambda penalty: outcomes[penalty].bankruptcy_rate)

    def almost_keeps(ours: Measured) -> bool:
        return ours.bankruptcy_ci[0] <= max_bankruptcy and ours.quality >= best.quality

    almost = [penalty for penalty, ours in outcomes.items() if almost_keeps(ours)]
    if almost:
        return min(almost, key=lambda penalty: outcomes[penalty].bankruptcy_rate)
    return max(outcomes, key=lambda penalty: outcomes[penalty].quality)
