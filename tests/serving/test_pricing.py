import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqroute_ray.core.catalog import Catalog
from seqroute_ray.core.money import to_nusd
from seqroute_ray.serving.config import UpstreamConfig
from seqroute_ray.serving.pricing import Pricing
from seqroute_ray.serving.usage import Usage

from .support import spec

PRICES = st.integers(0, 10**8).map(lambda micro: micro / 1e6)  # USD per million, to the millionth
TOKENS = st.integers(0, 10**6)


def upstream(
    usd_in: float, usd_out: float, cached: float | None = None, reasoning: float | None = None
) -> UpstreamConfig:
    return UpstreamConfig(
        model="m",
        base_url="http://127.0.0.1:9/v1",
        usd_per_m_input=usd_in,
        usd_per_m_output=usd_out,
        usd_per_m_cached_input=cached,
        usd_per_m_reasoning=reasoning,
    )


upstreams = st.builds(upstream, PRICES, PRICES, st.none() | PRICES, st.none() | PRICES)


@st.composite
def usages(draw: st.DrawFn, prompt_bound: int, max_tokens: int) -> Usage:
    """Any usage within the bounds; reasoning beside the completion, which shares the limit."""
    prompt_tokens = draw(st.integers(0, prompt_bound))
    reasoning_tokens = draw(st.integers(0, max_tokens))
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=draw(st.integers(0, max_tokens - reasoning_tokens)),
        cached_prompt_tokens=draw(st.integers(0, prompt_tokens)),
        reasoning_tokens=reasoning_tokens,
    )


@settings(deadline=None)  # the machine may be busy
@given(upstreams, TOKENS, TOKENS, st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(
    upstream: UpstreamConfig, prompt_bound: int, max_tokens: int, data: st.DataObject
) -> None:
    pricing = Pricing.of(upstream)
    usage = data.draw(usages(prompt_bound, max_tokens))
    assert 0 <= pricing.cost_nusd(usage) <= pricing.worst_case_nusd(prompt_bound, max_tokens)


@settings(deadline=None)  # the machine may be busy
@given(upstreams, TOKENS, TOKENS)
def test_the_worst_case_is_some_usages_cost(upstream: UpstreamConfig, prompt_bound: int, max_tokens: int) -> None:
    """No money is held in vain: the dearest of the four corners costs exactly it."""
    pricing = Pricing.of(upstream)
    beside = (0, max_tokens) if upstream.usd_per_m_reasoning is not None else (0,)
    costs = [
        pricing.cost_nusd(
            Usage(
                prompt_tokens=prompt_bound,
                completion_tokens=max_tokens - reasoning,
                cached_prompt_tokens=cached,
                reasoning_tokens=reasoning,
            )
        )
        for cached in (0, prompt_bound)
        for reasoning in beside
    ]
    assert max(costs) == pricing.worst_case_nusd(prompt_bound, max_tokens)


@settings(deadline=None)  # the machine may be busy
@given(upstreams, TOKENS, TOKENS, st.data())
def test_a_cost_is_the_exact_price_rounded_up(
    upstream: UpstreamConfig, prompt_bound: int, max_tokens: int, data: st.DataObject
) -> None:
    usage = data.draw(usages(prompt_bound, max_tokens))
    cached, reasoning = upstream.usd_per_m_cached_input, upstream.usd_per_m_reasoning
    parts = [
        (usage.prompt_tokens - usage.cached_prompt_tokens, upstream.usd_per_m_input),
        (usage.cached_prompt_tokens, upstream.usd_per_m_input if cached is None else cached),
        (usage.completion_tokens, upstream.usd_per_m_output),
        (usage.reasoning_tokens, reasoning or 0),
    ]
    exact_nusd = sum(num_tokens * Fraction(str(usd_per_m)) * 1000 for num_tokens, usd_per_m in parts)
    assert Pricing.of(upstream).cost_nusd(usage) == math.ceil(exact_nusd)


@settings(deadline=None)  # the machine may be busy
@given(upstreams, TOKENS, st.integers(1, 10**6), st.integers(0, 10**12))
def test_max_tokens_is_the_most_that_the_money_left_pays(
    upstream: UpstreamConfig, prompt_bound: int, asked: int, remaining_nusd: int
) -> None:
    pricing = Pricing.of(upstream)
    limit = pricing.max_tokens(prompt_bound, asked, remaining_nusd)
    assert 0 <= limit <= asked
    if limit:
        assert pricing.worst_case_nusd(prompt_bound, limit) <= remaining_nusd
    if limit < asked:
        assert pricing.worst_case_nusd(prompt_bound, limit + 1) > remaining_nusd


# (prices, usage, nano-dollars), worked by hand
WORKED = [
    (upstream(0.15, 0.6), Usage(prompt_tokens=10, completion_tokens=20), 10 * 150 + 20 * 600),
    (
        upstream(2.5, 10, cached=1.25),
        Usage(prompt_tokens=10, completion_tokens=20, cached_prompt_tokens=8),
        2 * 2500 + 8 * 1250 + 20 * 10000,
    ),
    (
        upstream(2.5, 10),  # no price of its own: cached tokens cost the same
        Usage(prompt_tokens=10, completion_tokens=20, cached_prompt_tokens=8),
        10 * 2500 + 20 * 10000,
    ),
    (
        upstream(1, 2),  # within: billed once
        Usage(prompt_tokens=0, completion_tokens=20, reasoning_tokens=15),
        20 * 2000,
    ),
    (
        upstream(1, 2, reasoning=2),  # beside
        Usage(prompt_tokens=0, completion_tokens=20, reasoning_tokens=15),
        35 * 2000,
    ),
    (upstream(0.0375, 0), Usage(prompt_tokens=1, completion_tokens=9), 38),  # 37.5 rounded up
    (upstream(0, 0), Usage(prompt_tokens=10**6, completion_tokens=10**6), 0),
]


@pytest.mark.parametrize(("prices", "usage", "nusd"), WORKED)
def test_costs_worked_by_hand(prices: UpstreamConfig, usage: Usage, nusd: int) -> None:
    assert Pricing.of(prices).cost_nusd(usage) == nusd


def test_a_free_model_pays_any_length_with_no_money_left() -> None:
    assert Pricing.of(upstream(0, 0)).max_tokens(1000, 500, 0) == 500


@settings(deadline=None)  # the machine may be busy
@given(TOKENS, TOKENS)
def test_the_price_is_that_of_the_training_logs(prompt_tokens: int, completion_tokens: int) -> None:
    catalog = Catalog((spec("small", 0.22, 0.22), spec("large", 0.99, 0.99), spec("strong", 2.5, 10)))
    for action, model in enumerate(catalog.models):
        pricing = Pricing.of(upstream(model.usd_per_m_input, model.usd_per_m_output))
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        assert pricing.cost_nusd(usage) == to_nusd(catalog.cost_usd(action, prompt_tokens, completion_tokens))
