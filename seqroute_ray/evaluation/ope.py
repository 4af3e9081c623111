"""Off-policy evaluation: what a policy would have earned, from a log of another one; or why the log cannot say.

    paths = follow(sessions, budget_nusd)
    log = OffPolicy.of(paths, target, layout, features)
    for answer in log.answers():
        if answer.concluded: ...  # an Estimate with its interval; otherwise a Refusal that says why

Every estimator answers with a value and a 95 % interval, or refuses. docs/ope.md has formulas, coverage and limits.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from seqroute_ray.core.arrays import FloatArray
from seqroute_ray.core.errors import DataError
from seqroute_ray.core.mdp import StateLayout, TurnFeatures
from seqroute_ray.core.money import to_usd
from seqroute_ray.evaluation.config import MIN_ESS
from seqroute_ray.evaluation.ope_estimators import (
    Sums,
    doubly_robust,
    effective_sample_size,
    mean_weight,
    per_decision,
    strata,
    units,
    weighted_per_decision,
)
from seqroute_ray.evaluation.ope_fqe import action_features, fitted_q
from seqroute_ray.evaluation.ope_intervals import Interval, spread
from seqroute_ray.evaluation.ope_log import LoggedPaths, Weights, weigh

MAX_WEIGHT_ERRORS = 4.0  # standard errors that the mean weight may lie from 1: by chance once in 10,000 logs
MIN_EFFECTIVE = 3.0  # clusters that the error comes from: of fewer no error can be told, and no quantile
WEIGHT_ROUNDING = 1e-3  # propensities are logged with a few digits
Estimator = Literal["per_decision", "weighted_per_decision", "doubly_robust"]


@dataclass(frozen=True)
class Estimate:
    """What the policy would have earned."""

    estimator: Estimator
    value: float  # mean quality of a turn, or of a session
    standard_error: float
    interval: Interval  # 95 %
    difference: float  # to what the logger earned under the same budget
    difference_interval: Interval  # 95 %, paired
    effective_sample_size: float
    mean_weight: float
    num_effective: float  # clusters that the standard error comes from; see ope_intervals
    concluded: Literal[True] = True


@dataclass(frozen=True)
class Refusal:
    """The log cannot say what the policy would have earned."""

    estimator: Estimator
    why: str
    effective_sample_size: float
    mean_weight: float
    concluded: Literal[False] = False


@dataclass(frozen=True)
class OffPolicy:
    """A log under a budget, and a target policy's chances in it."""

    paths: LoggedPaths
    weights: Weights
    unit: FloatArray  # [N]
    action_features: FloatArray  # [N, K, F]; see ope_fqe
    min_ess: float = MIN_ESS

    @classmethod
    def of(
        cls,
        paths: LoggedPaths,
        target: FloatArray,
        layout: StateLayout,
        features: TurnFeatures,
        per: Literal["turn", "session"] = "turn",
        follows_forced: bool = False,
        min_ess: float = MIN_ESS,
    ) -> "OffPolicy":
        """target: [N, K]; features: [N]; follows_forced: see weigh.

        Raises DataError where propensities or target are unfit, or no served turn was judged.
        """
        weights = weigh(paths, target, follows_forced)
        if not (paths.served & paths.judged).any():
            raise DataError("no turn that the budget pays for has a quality; bring judgements, or a larger budget")
        remaining_usd = to_usd(paths.remaining_nusd)
        inputs = action_features(layout, features, remaining_usd, paths.sessions.turn)
        return cls(paths, weights, units(paths.sessions, per), inputs, min_ess)

    def answers(self) -> list[Estimate | Refusal]:
        """By estimator."""
        return [self._answer(name) for name in get_args(Estimator)]

    @cached_property
    def logged(self) -> Sums:
        """What the logger earned."""
        ones = np.ones(len(self.unit))
        as_it_was = Weights(self.weights.target, ones, ones, self.weights.judging)
        return weighted_per_decision(self.paths, as_it_was, self.unit)

    @cached_property
    def effective_sample_size(self) -> float:
        return effective_sample_size(self.weights, self.paths.sessions)

    @cached_property
    def mean_weight(self) -> Sums:
        return mean_weight(self.weights, self.paths.sessions)

    @cached_property
    def why_not(self) -> str:
        """Why no estimator can conclude; empty where each can."""
        sessions, ess, weight = self.paths.sessions, self.effective_sample_size, self.mean_weight
        if ess < self.min_ess:
            return (
                f"effective sample size {ess:.1f} of {sessions.num_sessions} sessions is below {self.min_ess:g}: the "
                "log hardly ever does what the policy does; log more sessions, explore more, or evaluate a policy "
                "nearer to the logger"
            )
        mean, error = weight.value(), spread(weight.influence(), sessions).error
        if abs(mean - 1) > MAX_WEIGHT_ERRORS * error + WEIGHT_ROUNDING:
            return (
                f"the sessions' mean weight is {mean:.3f}, more than {MAX_WEIGHT_ERRORS:g} standard errors "
                f"({error:.3f}) from 1: the policy takes models that the logger never took there, or the propensities "
                "are not those of the logger"
            )
        return self._never_judged()

    def _never_judged(self) -> str:
        """What the policy uses and nobody judged: judgements cannot be missing at random there."""
        sessions, names = self.paths.sessions, self.paths.sessions.catalog.names
        used = self.weights.upto * self.paths.served
        for key, what in ((sessions.action, "{}"), (strata(sessions), "turn {} of the sessions")):
            judged = np.bincount(key, used * self.paths.judged)
            missing = np.flatnonzero((judged == 0) & (np.bincount(key, used) > 0)).tolist()
            if missing:
                which = what.format(names[missing[0]] if key is sessions.action else missing[0])
                return f"{which} was never judged where the policy would have used it; judge some of those turns"
        return ""

    def _answer(self, estimator: Estimator) -> Estimate | Refusal:
        found = self.estimate(estimator)
        why = self.why_not or self.hangs_on_few(found)
        return Refusal(estimator, why, found.effective_sample_size, found.mean_weight) if why else found

    def estimate(self, estimator: Estimator) -> Estimate:
        """Whatever it is worth: `answers` tells which of these may be concluded from."""
        sums, logged, sessions = self.sums(estimator), self.logged, self.paths.sessions
        influence, value = sums.influence(left_out=True), sums.value()
        ours, paired = (spread(x, sessions) for x in (influence, influence - logged.influence(left_out=True)))
        return Estimate(
            estimator=estimator,
            value=value,
            standard_error=ours.error,
            interval=ours.interval(value),
            difference=value - logged.value(),
            difference_interval=paired.interval(value - logged.value()),
            effective_sample_size=self.effective_sample_size,
            mean_weight=self.mean_weight.value(),
            num_effective=ours.num_effective,
        )

    def hangs_on_few(self, found: Estimate) -> str:
        """Why this estimate or its error cannot be told; empty where they can."""
        if not np.isfinite(found.value):
            return "at one position of the session no logged turn is one that the policy would have come to"
        if found.num_effective >= MIN_EFFECTIVE:
            return ""
        return (
            f"the error comes from {found.num_effective:.1f} sessions or groups of large weight, fewer than "
            f"{MIN_EFFECTIVE:g}: too few to tell it; log more sessions, explore more, or evaluate a policy nearer to "
            "the logger"
        )

    def sums(self, estimator: Estimator) -> Sums:
        """The estimator of this log."""
        if estimator == "doubly_robust":
            model = fitted_q(self.paths, self.weights, self.action_features)
            return doubly_robust(self.paths, self.weights, self.unit, model)
        plain = per_decision if estimator == "per_decision" else weighted_per_decision
        return plain(self.paths, self.weights, self.unit)
