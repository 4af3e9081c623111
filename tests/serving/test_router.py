from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import WordLlamaEmbedder
from seqroute_ray.core.errors import ArtefactError, BudgetExhaustedError, ConfigError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.policy import QNetwork, Values
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.core.sessions import Sessions
from seqroute_ray.evaluation.baselines import QPolicy
from seqroute_ray.evaluation.replay import ReplayData, replay
from seqroute_ray.serving.router import Decision, Prompt, Router, advance

from .support import QUESTIONS, TYPES, random_artefact, spec, trio

# 150 and 600, 2500 and 10000 nano-dollars a token
PAIR = Catalog((spec("weak", 0.15, 0.6, 200), spec("strong", 2.5, 10.0)))


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def account(remaining_nusd: int, context: dict[str, Any] | None = None, spent_nusd: int = 0) -> Account:
    return Account("s", spent_nusd + remaining_nusd, spent_nusd, 0, 0, context or {})


def prompt(tokens: int, task_type: str = UNKNOWN_TYPE) -> Prompt:
    """A prompt whose tokens are known exactly."""
    return Prompt(tokens=tokens, tokens_bound=tokens, task_type=task_type)


def test_max_tokens_is_what_was_asked_what_the_model_can_and_what_the_money_pays(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder, default_max_tokens=300)
    # 10 prompt tokens cost 1,500 and 25,000; 100,000 leaves (98,500 / 600, 75,000 / 10,000) = (164.2, 7.5).
    assert router.clamps(10, None, 100_000) == [164, 7]
    assert router.clamps(10, 5, 100_000) == [5, 5]
    assert router.clamps(10, None, 1_000_000) == [200, 97]  # the model's own limit of 200
    assert router.clamps(10, None, 10**9) == [200, 300]  # the default of 300
    assert router.clamps(10, None, 25_000) == [39, 0]
    assert router.clamps(10, None, 1_499) == [0, 0]


def test_the_worst_case_is_rounded_up(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(Catalog((spec("m", 0.0375, 0.1),))), embedder)
    assert router.worst_case_nusd(0, 3, 2) == 313  # 112.5 + 200
    assert router.cost_nusd(0, 4, 2) == 350


@pytest.mark.parametrize("remaining_nusd", [2_101, 30_000, 123_457, 5_000_000, 10**9])
def test_the_reservation_fits_into_what_remains(embedder: WordLlamaEmbedder, remaining_nusd: int) -> None:
    router = Router(random_artefact(PAIR), embedder)
    decision = router.decide(QUESTIONS[0], account(remaining_nusd), Prompt(tokens=5, tokens_bound=10), None, 0.0)
    assert decision.max_tokens >= 1
    assert decision.reserve_nusd == router.worst_case_nusd(decision.action, 10, decision.max_tokens) <= remaining_nusd


@dataclass(frozen=True)
class RecordingNetwork(QNetwork):
    """Remembers everything that it answered."""

    answers: list[Values] = field(default_factory=list)

    def values(self, state: NDArray[np.float32]) -> Values:
        self.answers.append(super().values(state))
        return self.answers[-1]


def one_session(catalog: Catalog, embedding: NDArray[np.float32]) -> Sessions:
    """A session of six turns, of named and of unknown types, every outcome known."""
    num_turns, rng = len(embedding), np.random.default_rng(0)
    quality = rng.random((num_turns, len(catalog))).astype(np.float32)
    cost_nusd = rng.integers(1_000, 2_000_000, size=quality.shape)
    return Sessions(
        catalog=catalog,
        embedder=WordLlamaEmbedder.name,
        session_id=np.array(["s"]),
        part=np.array(["test"]),
        offsets=np.array([0, num_turns]),
        embedding=embedding.astype(np.float16),
        action=np.zeros(num_turns, dtype=np.int64),
        quality=quality[:, 0],
        cost_nusd=cost_nusd[:, 0],
        prompt_tokens=rng.integers(1, 200, size=num_turns),
        propensity=np.ones(num_turns, dtype=np.float32),
        group_id=np.arange(num_turns).astype(np.str_),
        source=np.resize(["sums", UNKNOWN_TYPE, "prose", "verse"], num_turns),
        outcome_quality=quality,
        outcome_cost_nusd=cost_nusd,
    )


@pytest.mark.parametrize("lambda_per_usd", [0.0, 100.0])
def test_a_served_session_has_the_values_and_actions_of_its_replay(
    embedder: WordLlamaEmbedder, lambda_per_usd: float
) -> None:
    artefact, budget_nusd = random_artefact(trio()), 20_000_000
    sessions = one_session(artefact.catalog, embedder.embed(QUESTIONS))
    replayed = RecordingNetwork(**vars(artefact.network))
    result = replay(
        QPolicy(replayed, artefact.risk, lambda_per_usd),
        ReplayData.prepare(sessions, artefact.estimator, artefact.layout),
        np.array([budget_nusd]),
    )
    router, context, spent_nusd, decisions = Router(artefact, embedder), dict[str, Any](), 0, list[Decision]()
    for row, tokens in enumerate(sessions.prompt_tokens.tolist()):
        decision = router.choose(
            sessions.embedding[row : row + 1].astype(np.float32),
            account(budget_nusd - spent_nusd, context, spent_nusd),
            Prompt(tokens=tokens, tokens_bound=2 * tokens, task_type=str(sessions.source[row])),
            None,
            lambda_per_usd,
        )
        assert decision.bankruptcy_penalty == artefact.penalty(budget_nusd / 1e9)
        decisions.append(decision)
        spent_nusd += int(sessions.outcome_cost_nusd[row, decision.action])
        context = advance(context, decision)
    assert not result.bankrupt.any()
    assert [decision.action for decision in decisions] == result.action.tolist()
    penalty = artefact.penalty(budget_nusd / 1e9)
    for decision, values in zip(decisions, replayed.answers, strict=True):
        np.testing.assert_allclose(list(decision.q_values.values()), values.q_values(penalty)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(list(decision.bankruptcy.values()), values.bankruptcy[0], rtol=1e-5, atol=1e-5)


def test_the_cost_is_predicted_from_the_typical_prompt_and_reserved_from_its_bound(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)

    def decide(tokens: int, tokens_bound: int) -> Decision:
        asked = Prompt(tokens=tokens, tokens_bound=tokens_bound)
        return router.decide(QUESTIONS[0], account(10**9), asked, 5, 0.0)

    short, careful, long = decide(100, 100), decide(100, 1100), decide(1100, 1100)
    assert careful.predicted_cost_usd == short.predicted_cost_usd != long.predicted_cost_usd
    assert careful.action == short.action
    assert careful.reserve_nusd - short.reserve_nusd == router.worst_case_nusd(short.action, 1000, 0)


def test_an_unknown_type_of_task_is_inferred_as_if_none_were_named(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)
    unnamed, unknown, named = (
        router.decide(QUESTIONS[0], account(10**9), prompt(100, name), None, 0.0) for name in ("", "verse", "sums")
    )
    assert unnamed == unknown
    assert 0 < unnamed.summary[1] < named.summary[1] == 1  # the share of sums
    for model, cost_usd in named.predicted_cost_usd.items():
        assert unnamed.predicted_cost_usd[model] < cost_usd


def test_lambda_trades_q_against_predicted_cost(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(trio()), embedder)
    for lambda_per_usd in (0.0, 100.0, 1e6):
        decision = router.decide(QUESTIONS[1], account(10**9), prompt(30), None, lambda_per_usd)
        score = {name: q - lambda_per_usd * decision.predicted_cost_usd[name] for name, q in decision.q_values.items()}
        assert decision.model == max(score, key=lambda name: score[name])
        assert decision.masked == {}
    assert decision.model == min(decision.predicted_cost_usd, key=lambda name: decision.predicted_cost_usd[name])


def test_masks_say_why(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR, typical_cost_usd=0.001), embedder)
    by_quantile = router.decide(QUESTIONS[0], account(500_000), prompt(10), None, 0.0).masked
    assert len(by_quantile) == 1  # neither fits: the cheaper one stays, with a shorter answer
    assert "high quantile of its predicted cost" in next(iter(by_quantile.values()))
    by_clamp = router.decide(QUESTIONS[0], account(34_999), prompt(10), None, 0.0)
    assert by_clamp.model == "weak"
    assert by_clamp.masked == {"strong": "prompt and one token, up to $0.000035000, exceeds remaining $0.000034999"}


def test_nothing_payable_is_an_exhausted_budget(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)
    with pytest.raises(
        BudgetExhaustedError, match=r"spent \$0.000001000, reserved \$0.000000000, remaining \$0.000002099"
    ):
        router.decide(QUESTIONS[0], account(2_099, spent_nusd=1_000), prompt(10), None, 0.0)


def test_a_free_model_answers_without_money(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(Catalog((*PAIR.models, spec("free", 0.0, 0.0)))), embedder)
    decision = router.decide(QUESTIONS[0], account(0), prompt(10**6), 50, 0.0)
    assert (decision.model, decision.max_tokens, decision.reserve_nusd) == ("free", 50, 0)
    assert set(decision.masked) == {"weak", "strong"}
    assert "free" not in router.decide(QUESTIONS[0], account(10**5), prompt(10), 50, 0.0).masked


def test_a_decision_reads_as_json(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)
    fields = router.decide(QUESTIONS[0], account(10**9), prompt(10), 7, 2.0).to_json()
    assert fields["lambda_per_usd"] == 2.0
    assert fields["policy_version"] == router.version
    assert fields["reserve_usd"] > 0
    assert not {"summary", "reserve_nusd"} & set(fields)


def test_a_session_of_other_types_of_task_is_refused(embedder: WordLlamaEmbedder) -> None:
    before, after = (Router(random_artefact(PAIR, types=types), embedder) for types in (TYPES, (*TYPES, "verse")))
    context = advance({}, before.decide(QUESTIONS[0], account(10**9), prompt(10), None, 0.0))
    with pytest.raises(ArtefactError, match="was begun under a policy of 3 summary features, this one has 4"):
        after.decide(QUESTIONS[0], account(10**9, context), prompt(10), None, 0.0)


def test_another_embedder_is_refused() -> None:
    class Other:
        name = "other"

        def embed(self, texts: list[str]) -> Any:  # noqa: ARG002
            raise AssertionError("refused before it embeds")

    with pytest.raises(ConfigError, match="trained on embedder 'wordllama', got 'other'"):
        Router(random_artefact(PAIR), Other())
