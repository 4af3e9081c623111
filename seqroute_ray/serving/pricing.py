"""Tokens to money and back: the exact price of a usage, its worst case before the call, what the money left buys."""

import math
from dataclasses import dataclass
from fractions import Fraction

from seqroute_ray.serving.config import UpstreamConfig
from seqroute_ray.serving.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """One model's prices a token, in whole units of which a nano-dollar has so many: exact, and as fast as integers.

    A fraction of a nano-dollar is rounded up, in a cost as in a worst case: the sum is never below the bill.
    """

    units_per_nusd: int
    input: int
    cached_input: int
    output: int
    reasoning: int  # of reasoning tokens counted beside completion_tokens; 0 where they are counted within
    worst_input: int  # cached or not
    worst_output: int  # completion or reasoning

    @classmethod
    def of(cls, upstream: UpstreamConfig) -> "Pricing":
        cached = upstream.usd_per_m_cached_input
        usd_per_m = (
            upstream.usd_per_m_input,
            upstream.usd_per_m_input if cached is None else cached,
            upstream.usd_per_m_output,
            upstream.usd_per_m_reasoning or 0.0,
        )
        prices = [_nusd_per_token(usd) for usd in usd_per_m]
        units_per_nusd = math.lcm(*(price.denominator for price in prices))
        uncached, cached_units, output, reasoning = (int(price * units_per_nusd) for price in prices)
        return cls(
            units_per_nusd=units_per_nusd,
            input=uncached,
            cached_input=cached_units,
            output=output,
            reasoning=reasoning,
            worst_input=max(uncached, cached_units),
            worst_output=max(output, reasoning),
        )

    def cost_nusd(self, usage: Usage) -> int:
        """Price of a call in nano-dollars."""
        units = (usage.prompt_tokens - usage.cached_prompt_tokens) * self.input
        units += usage.cached_prompt_tokens * self.cached_input
        units += usage.completion_tokens * self.output + usage.reasoning_tokens * self.reasoning
        return -(-units // self.units_per_nusd)

    def worst_case_nusd(self, prompt_tokens_bound: int, max_tokens: int) -> int:
        """No call costs more that uses at most so many prompt tokens, and completion and reasoning tokens together."""
        units = prompt_tokens_bound * self.worst_input + max_tokens * self.worst_output
        return -(-units // self.units_per_nusd)

    def max_tokens(self, prompt_tokens_bound: int, asked: int, remaining_nusd: int) -> int:
        """The largest token limit up to `asked` whose worst case the money left can pay; 0: not even one token."""
        left = remaining_nusd * self.units_per_nusd - prompt_tokens_bound * self.worst_input
        if left < 0:
            return 0
        return min(asked, left // self.worst_output) if self.worst_output else asked

    def cache_saving_nusd(self, cached_tokens: int) -> float:
        """What so many prompt tokens read from the cache save."""
        return cached_tokens * (self.input - self.cached_input) / self.units_per_nusd

    @property
    def is_free(self) -> bool:
        return not (self.worst_input or self.worst_output)


def _nusd_per_token(usd_per_m: float) -> Fraction:
    """The price as it is meant, without binary rounding: 0.15 is 150 nano-dollars a token."""
    return Fraction(f"{usd_per_m:.12g}") * 1000
