"""Train and serve agree: sessions answered turn by turn cost what their replay says, to the nano-dollar."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from seqroute_ray.core.arrays import FloatArray, IntArray
from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import BudgetExhaustedError
from seqroute_ray.core.ledger import Account, Attempt
from seqroute_ray.core.ledger_rules import reserving, settling, summed
from seqroute_ray.core.money import to_nusd, to_usd
from seqroute_ray.core.policy import PolicyArtefact, QNetwork, Values
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.risk_plan import plan_risk
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.data.bundled import EMBEDDER, load_outcomes
from seqroute_ray.data.sample import DEFAULT_POOL, SampleConfig, compose
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.replay import UNSERVED, ReplayData, ReplayResult, replay
from seqroute_ray.serving.config import UpstreamConfig
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.router import Decision, Prompt, Router, Wish
from seqroute_ray.serving.usage import Usage

from .support import pricing_of, random_artefact, spec, the_embedder, trio

NUM_SESSIONS = 1000
TIE = 1e-5  # two models whose values differ by less may be chosen one here, one there


@dataclass(frozen=True)
class RecordingNetwork(QNetwork):
    """Remembers everything that it answered."""

    answers: list[Values] = field(default_factory=list)

    def values(self, state: NDArray[np.float32]) -> Values:
        self.answers.append(super().values(state))
        return self.answers[-1]


@dataclass(frozen=True)
class Recorded:
    """Sessions with every outcome known, and the tokens that each outcome took."""

    sessions: Sessions
    prompt_tokens: IntArray  # [N, K]
    completion_tokens: IntArray  # [N, K]


def recorded_sessions(num_sessions: int) -> Recorded:
    """Sessions of the bundled test questions, of named and of unknown types."""
    rng, outcomes = np.random.default_rng(0), load_outcomes().select(DEFAULT_POOL)
    config = SampleConfig(num_sessions=num_sessions, part="test")
    lengths = rng.integers(config.min_turns, config.max_turns + 1, num_sessions)
    query = compose(outcomes, lengths, config, rng)
    num_turns, quality = len(query), outcomes.quality[query]
    cost_nusd = to_nusd(outcomes.cost_usd[query])
    sessions = Sessions(
        catalog=outcomes.catalog,
        embedder=EMBEDDER,
        session_id=np.array([f"s{number}" for number in range(num_sessions)]),
        part=np.full(num_sessions, "test"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        embedding=outcomes.embedding[query],
        action=np.zeros(num_turns, dtype=np.int64),
        quality=quality[:, 0],
        cost_nusd=cost_nusd[:, 0],
        prompt_tokens=outcomes.prompt_tokens[query, 0],
        propensity=np.ones(num_turns, dtype=np.float32),
        group_id=outcomes.query_id[query],
        source=np.where(rng.random(num_turns) < 0.5, rng.choice(["sums", "prose"], num_turns), UNKNOWN_TYPE),
        outcome_quality=quality,
        outcome_cost_nusd=cost_nusd,
    )
    return Recorded(sessions, outcomes.prompt_tokens[query], outcomes.completion_tokens[query])


@dataclass
class Counts:
    """What the comparison met."""

    turns: int = 0
    masks: int = 0
    ties: int = 0
    refusals: int = 0  # the server refuses a turn whose prompt alone exceeds what remains; the replay goes bankrupt


class Served:
    """One session through the router and the ledger's rules, beside its replay."""

    def __init__(self, router: Router, recorded: Recorded, budget_nusd: int, lambda_per_usd: float) -> None:
        self._router, self._recorded, self.lambda_per_usd = router, recorded, lambda_per_usd
        self.account = Account("s", budget_nusd)

    def decide(self, row: int) -> Decision:
        """Raises BudgetExhaustedError."""
        sessions = self._recorded.sessions
        tokens = int(sessions.prompt_tokens[row])
        prompt = Prompt(tokens=tokens, tokens_bound=tokens, task_type=str(sessions.source[row]))
        embedding = sessions.embedding[row : row + 1].astype(np.float32)
        return self._router.choose(embedding, self.account, prompt, Wish(lambda_per_usd=self.lambda_per_usd))

    def bill_nusd(self, row: int, decision: Decision) -> int:
        """What the recorded answer costs here; as in the log."""
        recorded, k = self._recorded, decision.action
        usage = Usage(
            prompt_tokens=int(recorded.prompt_tokens[row, k]), completion_tokens=int(recorded.completion_tokens[row, k])
        )
        cost_nusd = self._router.pricing[k].cost_nusd(usage)
        assert cost_nusd == recorded.sessions.outcome_cost_nusd[row, k]
        return cost_nusd


def after(account: Account, decision: Decision, cost_nusd: int) -> Account:
    """The account once the turn is reserved and settled."""
    held = reserving(account, decision.reserve_nusd)
    attempt = Attempt(
        attempt_id="a", session_id="s", model=decision.model, amount_nusd=decision.reserve_nusd, lease_until_s=0
    )
    _, booked = settling(attempt, cost_nusd)
    assert held.reserved_nusd + booked.reserved_nusd == 0
    return account._replace(
        spent_nusd=account.spent_nusd + booked.spent_nusd,
        num_turns=account.num_turns + 1,
        summary_sum=summed(account.summary_sum, decision.summary),
        latest={"model": decision.model},
    )


@dataclass(frozen=True)
class Replayed:
    """The sessions' replay, and the values that the network gave each turn."""

    result: ReplayResult
    quality: FloatArray  # [N, K]
    bankruptcy: FloatArray  # [N, K]


def replayed(artefact: PolicyArtefact, sessions: Sessions, budget_nusd: IntArray, lambda_per_usd: float) -> Replayed:
    network = RecordingNetwork(**vars(artefact.network))
    data = ReplayData.prepare(sessions, artefact.estimator, artefact.layout)
    result = replay(QPolicy(network, artefact.risk, lambda_per_usd), data, budget_nusd)
    quality, bankruptcy = np.zeros((2, len(result.action), len(sessions.catalog)))
    turn = np.arange(len(result.action)) - np.repeat(sessions.offsets[:-1], sessions.num_turns)
    for number, values in enumerate(network.answers):  # one call a turn, of the sessions that had not ended before it
        rows = np.flatnonzero((result.action != UNSERVED) & (turn == number))
        quality[rows], bankruptcy[rows] = values.quality, values.bankruptcy
    if data.risk is not None:
        rows = np.flatnonzero(result.action != UNSERVED)
        remaining_usd = to_usd(result.remaining_nusd[rows])
        bankruptcy[rows] = data.risk.at(rows, turn[rows], remaining_usd, data.estimates.cost_usd[rows])
    return Replayed(result, quality, bankruptcy)


def compare(served: Served, replay: Replayed, rows: range, penalty: float, counts: Counts) -> None:
    """Walk a session on both sides, until it ends or a tie parts them."""
    result = replay.result
    for row in rows:
        if result.action[row] == UNSERVED:
            raise AssertionError(f"row {row}: the replay had ended")
        assert served.account.remaining_nusd == result.remaining_nusd[row]
        try:
            decision = served.decide(row)
        except BudgetExhaustedError:
            counts.refusals += 1
            assert result.bankrupting[row]
            return
        counts.turns += 1
        counts.masks += bool(decision.masked)
        q_values = np.array(list(decision.q_values.values()))
        expected = replay.quality[row] - penalty * replay.bankruptcy[row]
        np.testing.assert_allclose(q_values, expected, rtol=1e-5, atol=1e-5 * (1 + penalty))
        if decision.action != result.action[row]:
            theirs = list(decision.q_values)[result.action[row]]
            if "prompt and one token" in decision.masked.get(theirs, ""):
                counts.refusals += 1
                assert result.bankrupting[row]
                return
            price = served.lambda_per_usd * np.array(list(decision.predicted_cost_usd.values()))
            score = q_values - price
            assert abs(score[decision.action] - score[result.action[row]]) < TIE, (row, decision)
            counts.ties += 1
            return
        cost_nusd = served.bill_nusd(row, decision)
        assert (cost_nusd > served.account.remaining_nusd) == result.bankrupting[row]
        if result.bankrupting[row]:
            return
        assert cost_nusd == result.cost_nusd[row]
        served.account = after(served.account, decision, cost_nusd)
    assert served.account.spent_nusd == result.cost_nusd[rows.start : rows.stop].sum()


@pytest.mark.parametrize(("lambda_per_usd", "is_planned"), [(0.0, False), (30.0, False), (0.0, True)])
def test_a_thousand_served_sessions_do_and_cost_what_their_replay_says(
    lambda_per_usd: float, is_planned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact, recorded = random_artefact(trio()), recorded_sessions(NUM_SESSIONS)
    sessions, counts = recorded.sessions, Counts()
    if is_planned:
        source = replace(sessions, source=np.where(sessions.source == UNKNOWN_TYPE, "sums", sessions.source))
        risk = plan_risk(source, artefact.estimator.features.types, artefact.layout.reference_cost_usd)
        artefact = replace(artefact, estimator=replace(artefact.estimator, risk=risk))
    budget_nusd = np.random.default_rng(1).integers(10**6, 30 * 10**6, NUM_SESSIONS)
    replay = replayed(artefact, sessions, budget_nusd, lambda_per_usd)
    router = Router(artefact, the_embedder(), pricing_of(artefact.catalog))
    for number, budget in enumerate(budget_nusd.tolist()):
        rows = range(int(sessions.offsets[number]), int(sessions.offsets[number + 1]))
        served = Served(router, recorded, budget, lambda_per_usd)
        compare(served, replay, rows, artefact.penalty(budget / 1e9), counts)
    with capsys.disabled():
        print(f"\nparity at lambda {lambda_per_usd}: {counts}, {int(replay.result.bankrupt.sum())} bankruptcies")
    assert counts.ties < NUM_SESSIONS / 100
    assert counts.turns > 3 * NUM_SESSIONS
    assert counts.masks > 100


@pytest.mark.parametrize(("usd_per_m", "differs"), [(0.22, False), (10.0, False), (0.075, False), (0.0375, True)])
def test_bills_differ_from_the_evaluators_only_at_prices_of_broken_nano_dollars_a_token(
    usd_per_m: float, differs: bool
) -> None:
    """The server rounds a broken nano-dollar up, the evaluator to the nearest: at most one nano-dollar a turn."""
    catalog = Catalog((spec("m", usd_per_m, 2 * usd_per_m),))
    pricing = Pricing.of(
        UpstreamConfig(
            model="m",
            base_url="http://127.0.0.1:9/v1",
            usd_per_m_input=usd_per_m,
            usd_per_m_output=2 * usd_per_m,
        )
    )
    prompt, completion = np.random.default_rng(0).integers(1, 5000, (2, 1000))
    evaluated = to_nusd(catalog.cost_usd(np.zeros(1000, dtype=np.int64), prompt, completion))
    served = [
        pricing.cost_nusd(Usage(prompt_tokens=p, completion_tokens=c))
        for p, c in zip(prompt.tolist(), completion.tolist(), strict=True)
    ]
    assert set((np.array(served) - evaluated).tolist()) == ({0, 1} if differs else {0})
