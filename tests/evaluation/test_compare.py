"""Choices of knobs, regimes and paired differences, on figures made by hand."""

from dataclasses import dataclass

import numpy as np
import pytest

from seqroute_ray.core.arrays import IntArray
from seqroute_ray.evaluation.compare import REGIMES, Arena, Choice, aiq_table, comparisons, cost_at_equal_quality
from seqroute_ray.evaluation.families import CQL, CQL_ANY_RISK, Family, Setting
from seqroute_ray.evaluation.metrics import Measured
from seqroute_ray.evaluation.replay import ReplayData, Turns

REPLICATES = np.linspace(-0.01, 0.01, 101)


@dataclass(frozen=True)
class Silent:
    """Never asked: the figures are given."""

    def act(self, data: ReplayData, turns: Turns) -> IntArray:  # noqa: ARG002
        raise AssertionError("the figures are given: nothing is replayed")


def figures(quality: float, cost_usd: float, bankruptcy: float = 0.0, shift: float = 0.0) -> Measured:
    return Measured(
        quality=quality,
        quality_ci=(0.0, 1.0),
        cost_usd_per_turn=cost_usd,
        cost_ci=(0.0, 1.0),
        bankruptcy_rate=bankruptcy,
        bankruptcy_ci=(0.0, 1.0),
        bankruptcy_error=0.1,
        model_share=np.array([1.0]),
        quality_replicates=quality + REPLICATES + shift,
        cost_replicates=np.full(len(REPLICATES), cost_usd),
    )


def family(name: str, num_settings: int) -> Family:
    return Family(name, tuple(Setting(f"knob {s}", Silent()) for s in range(num_settings)))


def arena(measured: dict[str, list[Measured]], choice: Choice | None = None) -> Arena:
    """One budget; by family the figures of its settings."""
    return Arena(
        families=[family(name, len(settings)) for name, settings in measured.items()],
        budgets_usd=[2.0],
        measured=[[[cell] for cell in settings] for settings in measured.values()],
        choice=choice,
        oracle=[figures(1.0, 1.0)],
        reference_cost_usd=4.0,
        cost_range_usd=(1.0, 2.0),
    )


MEASURED = {
    CQL: [figures(0.5, 1.0)],
    CQL_ANY_RISK: [figures(0.7, 1.5, 0.05), figures(0.6, 1.0, 0.004)],
    "baseline": [figures(0.65, 2.0, 0.03), figures(0.3, 1.0, 0.02)],
}


def test_without_a_tune_part_the_knob_is_the_best_in_hindsight() -> None:
    assert arena(MEASURED).chosen(2, 0) == 0


def test_with_a_tune_part_the_knob_is_the_best_there() -> None:
    choice = Choice(
        quality=[np.zeros((1, 1)), np.zeros((2, 1)), np.array([[0.1], [0.2]])],
        bankruptcy=[np.zeros((n, 1)) for n in (1, 2, 2)],
    )
    assert arena(MEASURED, choice).chosen(2, 0) == 1


def test_cql_as_served_is_never_chosen_anew() -> None:
    served = {**MEASURED, CQL: [figures(0.5, 1.0), figures(0.9, 1.0)]}
    assert arena(served).chosen(0, 0) == 0


def test_a_limit_on_bankruptcies_leaves_the_best_that_keeps_it_or_the_fewest() -> None:
    assert arena(MEASURED).chosen(1, 0, max_bankruptcy=0.01) == 1
    assert arena(MEASURED).chosen(2, 0, max_bankruptcy=0.01) == 1  # none keeps it: 2 % is the fewest


def test_both_regimes_compare_the_policies_at_their_own_choice() -> None:
    free, safe = comparisons(arena(MEASURED))
    assert [free["regime"], safe["regime"]] == list(REGIMES)
    assert free["difference"] == pytest.approx(0.7 - 0.65)
    assert safe["difference"] == pytest.approx(0.6 - 0.3)
    assert (free["knob"], safe["knob"]) == ("knob 0", "knob 1")
    assert free["budget"] == pytest.approx(0.5)


def test_differences_are_paired() -> None:
    """Both policies move with the questions, so their difference does not."""
    row = comparisons(arena(MEASURED))[0]
    assert (row["low"], row["high"]) == pytest.approx((0.05, 0.05))
    apart = {**MEASURED, "baseline": [figures(0.65, 2.0, 0.03, shift=0.02)]}
    row = comparisons(arena(apart))[0]
    assert (row["low"], row["high"]) == pytest.approx((0.03, 0.03))


def test_saving_at_equal_quality_is_read_off_our_frontier() -> None:
    (row,) = cost_at_equal_quality(arena(MEASURED))
    # 0.65 lies half way between 0.6 at 1.0 and 0.7 at 1.5; the baseline pays 2.
    assert row["saving"] == pytest.approx(1 - 1.25 / 2)
    better = {**MEASURED, "baseline": [figures(0.71, 2.0)]}
    assert cost_at_equal_quality(arena(better))[0]["saving"] is None


def test_aiq_uses_every_setting_and_pairs_the_replicates() -> None:
    table = {row["policy"]: row for row in aiq_table(arena(MEASURED))}
    assert table[CQL]["aiq"] == pytest.approx(0.5)
    assert table["baseline"]["aiq"] == pytest.approx((0.3 + 0.65) / 2, abs=1e-3)
    assert table["baseline"]["aiq_cql_less_this"] == pytest.approx(0.5 - 0.475, abs=1e-3)
    assert table["baseline"]["aiq_difference_ci"] == pytest.approx((0.025, 0.025), abs=1e-3)
