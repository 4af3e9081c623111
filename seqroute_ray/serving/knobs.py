"""What a caller may turn per request, by headers: budgets, the price of money, the type of task.

x-lambda is quality per USD: argmax Q(s, a) - lambda * cost. x-quality is the same knob without units: from 10 (lambda
0, the best quality that the budget can buy) to 0 (as cheap as `seqroute evaluate` ever looks). A policy stores no grid
of lambdas, so quality is mapped on the span of evaluation's, in units of 1 / the policy's reference cost: from 10 to 9
linearly from 0 to its smallest, from 9 to 0 in equal ratios to its largest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from seqroute_ray.core.ledger import MAX_BUDGET_NUSD
from seqroute_ray.core.money import NUSD_PER_USD, to_nusd
from seqroute_ray.serving.requests import RequestError

BUDGET_HEADER, MAX_TURN_HEADER = "x-session-budget-usd", "x-max-turn-usd"
LAMBDA_HEADER, QUALITY_HEADER = "x-lambda", "x-quality"
TASK_TYPE_HEADER = "x-task-type"  # as `source` in the logs; a type that the policy does not know is inferred
MAX_TASK_TYPE_CHARACTERS = 128
BEST_QUALITY = 10.0
SMALLEST_LAMBDA, LARGEST_LAMBDA = 0.1, 16.0  # of evaluation's LAMBDA_GRID, in quality per reference cost

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobDefaults:
    """What holds where a request says nothing; of a key, or of the server. None: not set here."""

    session_budget_nusd: int | None = None
    lambda_per_usd: float | None = None
    max_turn_nusd: int | None = None

    def over(self, other: "KnobDefaults") -> "KnobDefaults":
        """These where they are set, else the other's: a key's over the server's."""
        return KnobDefaults(
            session_budget_nusd=_first(self.session_budget_nusd, other.session_budget_nusd),
            lambda_per_usd=_first(self.lambda_per_usd, other.lambda_per_usd),
            max_turn_nusd=_first(self.max_turn_nusd, other.max_turn_nusd),
        )


class Knobs(NamedTuple):
    """One request's knobs, defaults filled in."""

    asked_budget_nusd: int | None  # sent with this request
    default_budget_nusd: int | None
    lambda_per_usd: float
    max_turn_nusd: int | None  # this turn reserves no more than this; None: what the session has left
    task_type: str  # "" where not named

    @property
    def first_budget_nusd(self) -> int | None:
        """What a new session gets; None: neither sent nor set as a default."""
        return _first(self.asked_budget_nusd, self.default_budget_nusd)


def read_knobs(
    headers: Mapping[str, str], defaults: KnobDefaults, reference_cost_usd: float, *, may_set_budget: bool = True
) -> Knobs:
    """Headers by lower-case name. Raises RequestError naming the header, the rule and the value."""
    budget, max_turn = (_money(name, headers.get(name)) for name in (BUDGET_HEADER, MAX_TURN_HEADER))
    if budget is not None and not may_set_budget:
        message = (
            f"{BUDGET_HEADER}: this API key may not set budgets; leave the header out, its sessions have a default"
        )
        raise RequestError(message, status=403, code="budget_not_allowed")
    lam = _lambda(headers, reference_cost_usd)
    return Knobs(
        asked_budget_nusd=budget,
        default_budget_nusd=defaults.session_budget_nusd,
        lambda_per_usd=_first(lam, defaults.lambda_per_usd) or 0.0,
        max_turn_nusd=_first(max_turn, defaults.max_turn_nusd),
        task_type=_task_type(headers.get(TASK_TYPE_HEADER, "")),
    )


def lambda_of_quality(quality: float, reference_cost_usd: float) -> float:
    """quality: in [0, 10]. Quality per USD, 0 at 10; falls strictly and without jumps."""
    if quality >= BEST_QUALITY - 1:
        return SMALLEST_LAMBDA * (BEST_QUALITY - quality) / reference_cost_usd
    steps = 1 - quality / (BEST_QUALITY - 1)  # 0 at quality 9, 1 at 0
    return SMALLEST_LAMBDA * math.pow(LARGEST_LAMBDA / SMALLEST_LAMBDA, steps) / reference_cost_usd


def budget_to_nusd(name: str, value: object) -> int:
    """An amount in USD, text or number, as nano-dollars. Raises RequestError naming the field."""
    amount_usd = _number(value)
    if not 1 / NUSD_PER_USD <= amount_usd <= MAX_BUDGET_NUSD / NUSD_PER_USD:
        limits = f"at least 1e-9 and at most {MAX_BUDGET_NUSD / NUSD_PER_USD:g}"
        raise RequestError(f"{name}: must be USD > 0, {limits}, got {_quoted(value)}")
    return int(to_nusd(amount_usd))


def _first(value: T | None, other: T | None) -> T | None:
    return other if value is None else value


def _money(name: str, value: str | None) -> int | None:
    return None if value is None else budget_to_nusd(name, value)


def _lambda(headers: Mapping[str, str], reference_cost_usd: float) -> float | None:
    lam, quality = headers.get(LAMBDA_HEADER), headers.get(QUALITY_HEADER)
    if lam is not None and quality is not None:
        raise RequestError(f"{LAMBDA_HEADER}, {QUALITY_HEADER}: two names of one knob, send one of them, got both")
    if quality is not None:
        if not 0 <= _number(quality) <= BEST_QUALITY:
            raise RequestError(f"{QUALITY_HEADER}: must be in [0, 10], 10 is best, got {_quoted(quality)}")
        return lambda_of_quality(_number(quality), reference_cost_usd)
    if lam is not None and not 0 <= _number(lam) < math.inf:
        raise RequestError(f"{LAMBDA_HEADER}: must be finite and >= 0 (quality per USD), got {_quoted(lam)}")
    return None if lam is None else _number(lam)


def _task_type(value: str) -> str:
    if len(value) > MAX_TASK_TYPE_CHARACTERS or not value.isprintable():
        rule = f"must be printable, at most {MAX_TASK_TYPE_CHARACTERS} characters"
        raise RequestError(f"{TASK_TYPE_HEADER}: {rule}, got {_quoted(value)}")
    return value


def _number(value: object) -> float:
    """NaN, which no range admits, where the value is not a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _quoted(value: object) -> str:
    return repr(value)[:42]
