"""The decision alone: masks, clamps, the ladder, the price of money, exploration. Accounts are data."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.errors import BudgetExhaustedError, ConfigError, NoModelError
from seqroute_ray.core.ledger import Account
from seqroute_ray.core.policy import PolicyArtefact
from seqroute_ray.core.queries import UNKNOWN_TYPE
from seqroute_ray.serving.router import Decision, Prompt, Router, Wish

from .support import QUESTIONS, TYPES, pricing_of, random_artefact, spec, the_embedder, trio

# 150 and 600, 2500 and 10000 nano-dollars a token
PAIR = Catalog((spec("weak", 0.15, 0.6, 200), spec("strong", 2.5, 10.0)))
WITH_FREE = Catalog((*PAIR.models, spec("free", 0.0, 0.0)))


def account(remaining_nusd: int, spent_nusd: int = 0, **memory: Any) -> Account:
    return Account("s", spent_nusd + remaining_nusd, spent_nusd, **memory)


def prompt(tokens: int, task_type: str = UNKNOWN_TYPE, cached_tokens: int = 0) -> Prompt:
    """A prompt whose tokens are known exactly."""
    return Prompt(tokens=tokens, tokens_bound=tokens, task_type=task_type, cached_tokens=cached_tokens)


def router_of(artefact: PolicyArtefact, **fields: Any) -> Router:
    cached = fields.pop("usd_per_m_cached_input", {})
    return Router(artefact, the_embedder(), pricing_of(artefact.catalog, cached), **fields)


def choose(router: Router, spender: Account, asked: Prompt, text: str = QUESTIONS[0], **wish: Any) -> Decision:
    return router.choose(router.embed(text), spender, asked, Wish(**wish))


def test_max_tokens_is_what_was_asked_what_the_model_can_and_what_the_money_pays() -> None:
    router = router_of(random_artefact(PAIR), default_max_tokens=300)
    # 10 prompt tokens cost 1,500 and 25,000; 100,000 leaves (98,500 / 600, 75,000 / 10,000) = (164.2, 7.5).
    assert router.clamps(10, None, 100_000) == [164, 7]
    assert router.clamps(10, 5, 100_000) == [5, 5]
    assert router.clamps(10, None, 1_000_000) == [200, 97]  # the model's own limit of 200
    assert router.clamps(10, None, 10**9) == [200, 300]  # the default of 300
    assert router.clamps(10, None, 25_000) == [39, 0]
    assert router.clamps(10, None, 1_499) == [0, 0]


@pytest.mark.parametrize("remaining_nusd", [2_101, 30_000, 123_457, 5_000_000, 10**9])
def test_the_reservation_fits_into_what_remains(remaining_nusd: int) -> None:
    router = router_of(random_artefact(PAIR))
    decision = choose(router, account(remaining_nusd), Prompt(tokens=5, tokens_bound=10))
    assert decision.max_tokens >= 1
    worst_nusd = router.pricing[decision.action].worst_case_nusd(10, decision.max_tokens)
    assert decision.reserve_nusd == worst_nusd <= remaining_nusd


def test_the_cost_is_predicted_from_the_typical_prompt_and_reserved_from_its_bound() -> None:
    router = router_of(random_artefact(PAIR))

    def decide(tokens: int, tokens_bound: int) -> Decision:
        return choose(router, account(10**9), Prompt(tokens=tokens, tokens_bound=tokens_bound), max_tokens=5)

    short, careful, long = decide(100, 100), decide(100, 1100), decide(1100, 1100)
    assert careful.predicted_cost_usd == short.predicted_cost_usd != long.predicted_cost_usd
    assert careful.action == short.action
    assert careful.reserve_nusd - short.reserve_nusd == router.pricing[short.action].worst_case_nusd(1000, 0)


def test_an_unknown_type_of_task_is_inferred_as_if_none_were_named() -> None:
    router = router_of(random_artefact(PAIR))
    unnamed, unknown, named = (choose(router, account(10**9), prompt(100, name)) for name in ("", "verse", "sums"))
    assert unnamed == unknown
    assert 0 < unnamed.summary[1] < named.summary[1] == 1  # the share of sums
    for model, cost_usd in named.predicted_cost_usd.items():
        assert unnamed.predicted_cost_usd[model] < cost_usd


def test_lambda_trades_q_against_predicted_cost() -> None:
    router = router_of(random_artefact(trio()))
    for lambda_per_usd in (0.0, 100.0, 1e6):
        decision = choose(router, account(10**9), prompt(30), QUESTIONS[1], lambda_per_usd=lambda_per_usd)
        score = {name: q - lambda_per_usd * decision.predicted_cost_usd[name] for name, q in decision.q_values.items()}
        assert decision.model == max(score, key=lambda name: score[name])
        assert decision.masked == {}
    assert decision.model == min(decision.predicted_cost_usd, key=lambda name: decision.predicted_cost_usd[name])


def test_masks_say_why() -> None:
    router = router_of(random_artefact(PAIR, typical_cost_usd=0.001))
    by_quantile = choose(router, account(500_000), prompt(10)).masked
    assert len(by_quantile) == 1  # neither fits: the cheaper one stays, with a shorter answer
    assert "high quantile of its predicted cost" in next(iter(by_quantile.values()))
    by_clamp = choose(router, account(34_999), prompt(10))
    assert by_clamp.model == "weak"
    assert by_clamp.masked == {"strong": "prompt and one token, up to $0.000035000, exceeds remaining $0.000034999"}


def test_nothing_payable_is_an_exhausted_budget() -> None:
    with pytest.raises(
        BudgetExhaustedError, match=r"spent \$0.000001000, reserved \$0.000000000, remaining \$0.000002099"
    ):
        choose(router_of(random_artefact(PAIR)), account(2_099, spent_nusd=1_000), prompt(10))


def test_a_free_model_answers_without_money() -> None:
    router = router_of(random_artefact(WITH_FREE))
    decision = choose(router, account(0), prompt(10**6), max_tokens=50)
    assert (decision.model, decision.max_tokens, decision.reserve_nusd) == ("free", 50, 0)
    assert set(decision.masked) == {"weak", "strong"}
    assert "free" not in choose(router, account(10**5), prompt(10), max_tokens=50).masked


def test_the_ladder_is_a_cheaper_model_then_a_shorter_answer_then_a_free_model_then_the_end() -> None:
    artefact = random_artefact(PAIR, typical_cost_usd=0.001, seed=3)  # likes strong best
    paying, with_free = router_of(artefact), router_of(random_artefact(WITH_FREE))
    rich = choose(paying, account(10**9), prompt(10), max_tokens=50)
    assert (rich.model, rich.degraded, rich.max_tokens) == ("strong", (), 50)
    cheaper = choose(paying, account(34_999), prompt(10), max_tokens=50)
    assert (cheaper.model, cheaper.degraded, cheaper.max_tokens) == ("weak", ("cheaper_model",), 50)
    shorter = choose(paying, account(31_499), prompt(10), max_tokens=50)
    assert (shorter.model, shorter.degraded, shorter.max_tokens) == ("weak", ("cheaper_model", "shorter_answer"), 49)
    free = choose(with_free, account(0), prompt(10), max_tokens=100)
    assert (free.model, free.max_tokens) == ("free", 100)
    with pytest.raises(BudgetExhaustedError):
        choose(paying, account(2_099), prompt(10), max_tokens=100)


def test_a_limit_of_the_turn_holds_below_what_the_session_has() -> None:
    router = router_of(random_artefact(PAIR))
    decision = choose(router, account(10**9), prompt(10), limit_nusd=30_000)
    assert decision.model == "weak"
    assert decision.reserve_nusd <= 30_000
    assert "exceeds remaining $0.000030000" in decision.masked["strong"]
    with pytest.raises(BudgetExhaustedError):
        choose(router, account(10**9), prompt(10), limit_nusd=2_099)


@pytest.mark.parametrize("because", ["pinned", "tool_call", "reasoning"])
def test_the_only_model_that_may_answer_does_and_says_why(because: str) -> None:
    router = router_of(random_artefact(PAIR))
    for name, other in (("weak", "strong"), ("strong", "weak")):
        decision = choose(router, account(10**9), prompt(10), only=name, only_because=because, draws=(0.0, 0.99))
        assert (decision.model, decision.chosen_by, decision.propensity) == (name, because, 1.0)
        assert decision.masked == {other: f"{because}: {name}"}
        assert decision.degraded == ()
    with pytest.raises(BudgetExhaustedError, match=r"cannot reserve \$0.000035000"):
        choose(router, account(30_000), prompt(10), only="strong", only_because=because)


def test_a_prompt_goes_to_models_that_can_take_it() -> None:
    small = replace(PAIR.models[0], max_input_tokens=99)
    router = router_of(random_artefact(Catalog((small, PAIR.models[1]))))
    assert "weak" not in choose(router, account(10**9), prompt(99)).masked
    decision = choose(router, account(10**9), prompt(100))
    assert decision.model == "strong"
    assert decision.masked == {"weak": "about 100 prompt tokens exceed its limit of 99"}


def test_models_that_cannot_be_called_now_are_no_question_of_money() -> None:
    router = router_of(random_artefact(PAIR))
    down = {"strong": "failed repeatedly: left alone for now"}
    decision = choose(router, account(10**9), prompt(10), excluded=down)
    assert (decision.model, decision.masked, decision.degraded) == ("weak", down, ())
    with pytest.raises(NoModelError, match="weak: down; strong: failed repeatedly"):
        choose(router, account(10**9), prompt(10), excluded={"weak": "down", **down})
    with pytest.raises(BudgetExhaustedError):  # strong alone could answer, and the money does not pay it
        choose(router, account(30_000), prompt(10), excluded={"weak": "down"})


def test_a_model_that_holds_the_prompts_beginning_is_cheaper_by_what_its_cache_saves() -> None:
    router = router_of(random_artefact(PAIR), usd_per_m_cached_input={"strong": 1.25})
    held = account(10**9, num_turns=1, summary_sum=(0.5, 0.5, 0.0), latest={"model": "strong"})
    cold = choose(router, held, prompt(1000))
    warm = choose(router, held, prompt(1000, cached_tokens=800))
    assert warm.predicted_cost_usd["weak"] == cold.predicted_cost_usd["weak"]
    assert cold.predicted_cost_usd["strong"] - warm.predicted_cost_usd["strong"] == pytest.approx(800 * 1.25e-6)
    assert choose(router, held._replace(latest={}), prompt(1000, cached_tokens=800)) == cold
    assert choose(router, held._replace(latest={"model": "gone"}), prompt(1000, cached_tokens=800)) == cold


def test_the_price_of_a_lost_cache_changes_the_choice_at_a_lambda() -> None:
    router = router_of(random_artefact(PAIR), usd_per_m_cached_input={"strong": 0.025})
    held = account(10**9, num_turns=1, summary_sum=(0.5, 0.5, 0.0), latest={"model": "strong"})
    cold = choose(router, held, prompt(100_000))
    gain = cold.q_values["strong"] - cold.q_values["weak"]
    # Strong costs about 0.235 USD more without its cache, 0.012 USD less with it.
    lambda_per_usd = abs(gain) * 1000 + 1
    assert choose(router, held, prompt(100_000), lambda_per_usd=lambda_per_usd).model == "weak"
    warm = choose(router, held, prompt(100_000, cached_tokens=100_000), lambda_per_usd=lambda_per_usd)
    assert warm.predicted_cost_usd["strong"] < warm.predicted_cost_usd["weak"]
    assert warm.model == "strong"


def test_exploration_is_uniform_among_what_is_allowed_and_its_propensities_are_its_frequencies() -> None:
    epsilon, rng, num_draws = 0.3, np.random.default_rng(0), 4000
    router = router_of(random_artefact(trio()), epsilon=epsilon)
    greedy = choose(router, account(10**9), prompt(30))
    counts, propensity = Counter[str](), dict[str, float]()
    for draws in rng.random((num_draws, 2)).tolist():
        decision = choose(router, account(10**9), prompt(30), draws=tuple(draws))
        counts[decision.model] += 1
        propensity[decision.model] = decision.propensity
        assert decision.chosen_by == ("policy" if decision.model == greedy.model else "exploration")
        assert decision.degraded == ()
    assert set(counts) == set(trio().names)
    assert sum(propensity.values()) == pytest.approx(1)
    assert propensity[greedy.model] == pytest.approx(1 - epsilon + epsilon / 3)
    for name, count in counts.items():
        deviation = (propensity[name] * (1 - propensity[name]) / num_draws) ** 0.5
        assert abs(count / num_draws - propensity[name]) < 4 * deviation


def test_what_the_money_cannot_pay_is_never_explored() -> None:
    router = router_of(random_artefact(PAIR), epsilon=1.0)
    for which in (0.0, 0.5, 0.999):
        decision = choose(router, account(30_000), prompt(10), draws=(0.0, which))
        assert (decision.model, decision.propensity) == ("weak", 1.0)


def test_a_decision_reads_as_json() -> None:
    router = router_of(random_artefact(PAIR))
    fields = choose(router, account(10**9), prompt(10), max_tokens=7, lambda_per_usd=2.0).to_json()
    assert fields["lambda_per_usd"] == 2.0
    assert fields["policy_version"] == router.version
    assert fields["reserve_usd"] > 0
    assert not {"summary", "reserve_nusd"} & set(fields)


def test_a_session_of_other_types_of_task_goes_on_as_if_it_were_new() -> None:
    before, after = (router_of(random_artefact(PAIR, types=types)) for types in (TYPES, (*TYPES, "verse")))
    summary = choose(before, account(10**9), prompt(10)).summary
    remembered = account(10**9, num_turns=1, summary_sum=summary)
    assert choose(before, remembered, prompt(10)).q_values != choose(before, account(10**9), prompt(10)).q_values
    assert choose(after, remembered, prompt(10)) == choose(after, account(10**9), prompt(10))


def test_another_embedder_is_refused() -> None:
    class Other:
        name = "other"

        def embed(self, texts: list[str]) -> Any:  # noqa: ARG002
            raise AssertionError("refused before it embeds")

    with pytest.raises(ConfigError, match="trained on embedder 'wordllama', got 'other'"):
        Router(random_artefact(PAIR), Other(), pricing_of(PAIR))


def test_a_price_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="2 models need as many prices, got 1"):
        Router(random_artefact(PAIR), the_embedder(), pricing_of(PAIR)[:1])
