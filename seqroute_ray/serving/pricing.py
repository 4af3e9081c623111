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

    @classmethod
    def of(cls, upstream: UpstreamConfig) -> "Pricing":
        cached, reasoning = upstream.usd_per_m_cached_input, upstream.usd_per_m_reasoning
        usd_per_m = (
            upstream.usd_per_m_input,
            upstream.usd_per_m_input if cached is None else cached,
            upstream.usd_per_m_output,
            reasoning or 0.0,
        )
        prices = [_nusd_per_token(usd) for usd in usd_per_m]
        units_per_nusd = math.lcm(*(price.denominator for price in prices))
        units = [int(price * units_per_nusd) for price in prices]
        return cls(
            units_per_nusd=units_per_nusd, input=units[0], cached_input=units[1], output=units[2], reasoning=units[3]
        )

    def cost_nusd(self, usage: Usage) -> int:
        """Price of a call in nano-dollars."""
        units = (usage.prompt_tokens - usage.cached_prompt_tokens) * self.input
        units += usage.cached_prompt_tokens * self.cached_input
        units += usage.completion_tokens * self.output + usage.reasoning_tokens * self.reasoning
        return -(-units // self.units_per_nusd)

    def worst_case_nusd(self, prompt_tokens_bound: int, max_tokens: int) -> int:
        """No call costs more that uses at most so many prompt tokens, and completion and reasoning tokens together."""
        units = prompt_tokens_bound * self._worst_input + max_tokens * self._worst_output
        return -(-units // self.units_per_nusd)

    def max_tokens(self, prompt_tokens_bound: int, asked: int, remaining_nusd: int) -> int:
        """The largest token limit up to `asked` whose worst case the money left can pay; 0: not even one token."""
        left = remaining_nusd * self.units_per_nusd - prompt_tokens_bound * self._worst_input
        if left < 0:
            return 0
        return min(asked, left // self._worst_output) if self._worst_output else asked

    @property
    def _worst_input(self) -> int:
        return max(self.input, self.cached_input)

    @property
    def _worst_output(self) -> int:
        return max(self.output, self.reasoning)


def _nusd_per_token(usd_per_m: float) -> Fraction:
    """The price as it is meant, without binary rounding: 0.15 is 150 nano-dollars a token."""
    return Fraction(f"{usd_per_m:.12g}") * 1000
