from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.embedding import WordLlamaEmbedder
from seqroute_ray.core.errors import ArtefactError, BudgetExhaustedError, ConfigError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.mdp import earlier_mean, encode_state, outcome_features, turn_features
from seqroute_ray.serving.router import Router, advance

from .support import QUESTIONS, random_artefact, spec, trio

# 150 and 600, 2500 and 10000 nano-dollars a token
PAIR = Catalog((spec("weak", 0.15, 0.6, 200), spec("strong", 2.5, 10.0)))


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def account(remaining_nusd: int, context: dict[str, Any] | None = None, spent_nusd: int = 0) -> Account:
    return Account("s", spent_nusd + remaining_nusd, spent_nusd, 0, 0, context or {})


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
    decision = router.decide(QUESTIONS[0], account(remaining_nusd), 10, None, 0.0)
    assert decision.max_tokens >= 1
    assert decision.reserve_nusd == router.worst_case_nusd(decision.action, 10, decision.max_tokens) <= remaining_nusd


def test_the_state_is_the_one_training_encodes(embedder: WordLlamaEmbedder) -> None:
    artefact = random_artefact(trio())
    router, context, actions = Router(artefact, embedder), dict[str, Any](), list[int]()
    estimates = artefact.estimator.predict(embedder.embed(QUESTIONS))
    outcomes = outcome_features(estimates, artefact.layout)
    offsets = np.array([0, len(QUESTIONS)])
    remaining_nusd = [10**7 - turn * 10**6 for turn in range(len(QUESTIONS))]
    served = []
    for turn, question in enumerate(QUESTIONS):
        now = account(remaining_nusd[turn], context)
        served.append(router.state(outcomes[turn : turn + 1], now)[0])
        decision = router.decide(question, now, 30, None, 0.0)
        actions.append(decision.action)
        context = advance(context, decision)
    trained = encode_state(
        artefact.layout,
        turn_features(outcomes, earlier_mean(outcomes, offsets)),
        np.array(remaining_nusd) / 1e9,
        np.arange(len(QUESTIONS)),
        np.array([-1, *actions[:-1]]),
    )
    np.testing.assert_allclose(np.array(served), trained, rtol=1e-5, atol=1e-6)
    assert context["num_turns"] == len(QUESTIONS)


def test_lambda_trades_q_against_predicted_cost(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(trio()), embedder)
    for lambda_per_usd in (0.0, 100.0, 1e6):
        decision = router.decide(QUESTIONS[1], account(10**9), 30, None, lambda_per_usd)
        score = {name: q - lambda_per_usd * decision.predicted_cost_usd[name] for name, q in decision.q_values.items()}
        assert decision.model == max(score, key=lambda name: score[name])
        assert decision.masked == {}
    assert decision.model == min(decision.predicted_cost_usd, key=lambda name: decision.predicted_cost_usd[name])


def test_masks_say_why(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR, typical_cost_usd=0.001), embedder)
    by_quantile = router.decide(QUESTIONS[0], account(500_000), 10, None, 0.0).masked
    assert len(by_quantile) == 1  # neither fits: the cheaper one stays, with a shorter answer
    assert "high quantile of its predicted cost" in next(iter(by_quantile.values()))
    by_clamp = router.decide(QUESTIONS[0], account(34_999), 10, None, 0.0)
    assert by_clamp.model == "weak"
    assert by_clamp.masked == {"strong": "prompt and one token, up to $0.000035000, exceeds remaining $0.000034999"}


def test_nothing_payable_is_an_exhausted_budget(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)
    with pytest.raises(
        BudgetExhaustedError, match=r"spent \$0.000001000, reserved \$0.000000000, remaining \$0.000002099"
    ):
        router.decide(QUESTIONS[0], account(2_099, spent_nusd=1_000), 10, None, 0.0)


def test_a_free_model_answers_without_money(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(Catalog((*PAIR.models, spec("free", 0.0, 0.0)))), embedder)
    decision = router.decide(QUESTIONS[0], account(0), 10**6, 50, 0.0)
    assert (decision.model, decision.max_tokens, decision.reserve_nusd) == ("free", 50, 0)
    assert set(decision.masked) == {"weak", "strong"}
    assert "free" not in router.decide(QUESTIONS[0], account(10**5), 10, 50, 0.0).masked


def test_a_decision_reads_as_json(embedder: WordLlamaEmbedder) -> None:
    router = Router(random_artefact(PAIR), embedder)
    fields = router.decide(QUESTIONS[0], account(10**9), 10, 7, 2.0).to_json()
    assert fields["lambda_per_usd"] == 2.0
    assert fields["policy_version"] == router.version
    assert fields["reserve_usd"] > 0
    assert not {"outcomes", "reserve_nusd"} & set(fields)


def test_a_session_of_another_pool_is_refused(embedder: WordLlamaEmbedder) -> None:
    of_pair = Router(random_artefact(PAIR), embedder)
    context = advance({}, of_pair.decide(QUESTIONS[0], account(10**9), 10, None, 0.0))
    with pytest.raises(ArtefactError, match=r"was begun under a policy of .* outcome features"):
        Router(random_artefact(trio()), embedder).decide(QUESTIONS[0], account(10**9, context), 10, None, 0.0)


def test_another_embedder_is_refused() -> None:
    class Other:
        name = "other"

        def embed(self, texts: list[str]) -> Any:
            raise NotImplementedError

    with pytest.raises(ConfigError, match="trained on embedder 'wordllama', got 'other'"):
        Router(random_artefact(PAIR), Other())
