"""The gate's own error rates, by formula and by simulation."""

import math

import pytest
import torch

from pytest_diffusion.maths.statistics import mean_estimate
from pytest_diffusion.verdicts.error_rates import distance_to_limit, error_rates
from pytest_diffusion.verdicts.quantiles import Z95
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict, judge


def verdict(value, error, *, at_most=None, at_least=None, name="x", degrees=math.inf):
    measured = Measurement.with_error(value, error, degrees, num_samples=100)
    return judge(name, measured, Limits(at_most=at_most, at_least=at_least))


@pytest.mark.parametrize(
    ("limits", "distance"),
    [({"at_most": 13.0}, 3.0), ({"at_least": 8.0}, 2.0), ({"at_least": 8.0, "at_most": 13.0}, 2.0), ({"at_most": 9.5}, -0.5)],
)
def test_distances_are_in_standard_errors(limits, distance):
    assert distance_to_limit(verdict(10.0, 1.0, **limits)) == pytest.approx(distance)


def test_a_figure_passes_from_196_on_whatever_its_interval():
    few = verdict(10.0, 1.0, at_most=12.131, degrees=15)
    assert few.outcome == "inconclusive"
    assert distance_to_limit(few) == pytest.approx(Z95, abs=1e-3)
    skewed = judge("x", Measurement(0.9, interval=(0.7, 0.96)), Limits(at_least=0.7, at_most=0.96))
    assert skewed.outcome == "pass"
    assert distance_to_limit(skewed) == pytest.approx(Z95)


def test_an_end_that_is_exact_is_as_far_inside_as_can_be():
    share = judge("x", Measurement(1.0, interval=(0.9, 1.0)), Limits(at_least=0.8, at_most=1.0))
    assert distance_to_limit(share) == pytest.approx(2 * Z95)
    assert distance_to_limit(judge("x", Measurement(1.0, interval=(0.9, 1.0)), Limits(at_most=1.5))) == math.inf
    assert distance_to_limit(judge("x", Measurement(1.0, interval=(0.9, 1.0)), Limits(at_most=0.5))) == -math.inf


@pytest.mark.parametrize(
    "unjudged",
    [
        judge("x", Measurement(1.0), Limits(at_most=2)),
        judge("x", Measurement(1.0, interval=(0.0, 2.0)), None),
        judge("x", Measurement(1.0, interval=(math.nan, math.nan)), Limits(at_most=2)),
        judge("x", Measurement(1.0, interval=(0.0, 1.5), num_samples=3), Limits(at_most=2, min_samples=10)),
        Verdict("x", "skipped", "nothing to see"),
    ],
)
def test_figures_without_a_distance(unjudged):
    assert distance_to_limit(unjudged) is None
    assert Entry(unjudged).to_json()["distance_to_limit"] is None
    assert error_rates([unjudged]) is None


def test_the_rates_of_two_figures():
    rates = error_rates([verdict(10.0, 1.0, at_most=14.0, name="far"), verdict(10.0, 1.0, at_most=13.0, name="near")])
    assert (rates.figures, rates.nearest, rates.distance) == (2, "near", pytest.approx(3.0))
    # 1 − Φ(4 − 1.96) + 1 − Φ(3 − 1.96)
    assert rates.chance == pytest.approx(0.0207 + 0.1492, abs=2e-4)
    assert rates.needed == pytest.approx(Z95 + 1.96, abs=1e-3)
    assert "at most 17 % of runs with other seeds would not be open" in rates.text
    assert "each must lie 3.9 standard errors inside its limit; the nearest here is near with 3.0" in rates.text
    assert error_rates([verdict(10.0, 1.0, at_most=9.0)] * 3).text.endswith(
        "up to all of runs with other seeds would not be open for these."
    )
    assert "not counted" not in rates.text
    assert "fewer than 0.1 % of runs" in error_rates([verdict(10.0, 1.0, at_most=19.0)]).text


def test_a_figure_between_two_limits_may_cross_either():
    rates = error_rates([verdict(10.0, 1.0, at_least=7.5, at_most=12.5)])
    assert rates.chance == pytest.approx(2 * 0.2946, abs=2e-4)
    assert rates.needed == pytest.approx(Z95 + 1.96, abs=1e-3)


def test_figures_whose_chance_is_not_known_are_counted_apart():
    exact = judge("p", Measurement(0.009), Limits(at_most=0.01))
    rates = error_rates([verdict(10.0, 1.0, at_most=13.0), exact, exact, Verdict("y", "skipped", "")])
    assert (rates.figures, rates.uncounted) == (1, 2)
    assert "1 figures have an interval; 2 judged figures without one are not counted." in rates.text


@pytest.mark.parametrize(("count", "limits"), [(16, {"at_most": 0.0}), (400, {"at_least": 0.0}), (40, {"at_least": 0.0, "at_most": 0.3})])
def test_a_model_at_a_limit_passes_in_at_most_one_of_forty_runs(count, limits):
    """The true figure is 0. Of 4,000 runs 100 pass by chance, with a standard error of 10."""
    draws = torch.randn(4000, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    passed = sum(
        judge("x", Measurement.with_error(*mean_estimate(values), num_samples=count), Limits(**limits)).outcome == "pass"
        for values in draws
    )
    assert passed <= 130
    if len(limits) == 1:
        assert passed >= 70, "the chance is used"


def test_the_chance_of_a_sound_model_is_not_understated():
    """Thirty figures, half of them the same: they lie as far inside as 95 % green runs need."""
    count, figures = 3000, 30
    needed = error_rates([verdict(0.0, 1.0, at_most=5.0)] * figures).needed
    assert needed == pytest.approx(4.9, abs=0.05)
    draws = torch.randn(count, figures, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:, figures // 2 :] = draws[:, figures // 2 :][:, :1]
    green = (draws + Z95 <= needed).all(1).double().mean()
    assert green >= 0.95
    assert float((draws[:, : figures // 2] + Z95 <= needed).all(1).double().mean()) == pytest.approx(1 - 0.025, abs=0.01)


def test_whoever_repeats_a_run_until_it_is_green_passes_a_model_at_its_limit():
    """The promise of 2.5 % is for one run; in forty runs one of them passes in two thirds of cases."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(300, 40, generator=generator, dtype=torch.float64)
    assert float((draws + Z95 <= 0).any(1).double().mean()) > 0.5
