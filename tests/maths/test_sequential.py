"""Looks at growing data: the boundaries against published constants and simulation, the p-values, and Holm's procedure."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.looks import Look, Rules
from pytest_diffusion.maths.sequential import Plan, as_normal, as_ratio, boundary, crossing_probability, holm
from pytest_diffusion.maths.statistics import Estimate


def even(looks):
    return tuple((look + 1) / looks for look in range(looks))


@pytest.mark.parametrize(
    ("looks", "one_sided", "constant"),
    # Jennison & Turnbull 2000, table 2.3: C_B(K, alpha) of two-sided tests at 0.1 and 0.05.
    [
        (1, 0.05, 1.645),
        (2, 0.05, 1.678),
        (5, 0.05, 1.751),
        (10, 0.05, 1.801),
        (20, 0.05, 1.842),
        (2, 0.025, 1.977),
        (5, 0.025, 2.040),
        (20, 0.025, 2.126),
    ],
)
def test_boundaries_are_those_of_obrien_and_fleming(looks, one_sided, constant):
    assert boundary(one_sided, even(looks)) == pytest.approx(constant, abs=2e-3)


def test_the_crossing_probability_is_that_of_simulated_paths():
    times = (0.016, 0.032, 0.064, 0.3, 0.55, 1.0)
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((200_000, len(times))) * np.sqrt(np.diff((0.0, *times)))
    highest = steps.cumsum(1).max(1)
    for height in (0.4, 1.0, 1.8):
        found = crossing_probability(height, times)
        assert found == pytest.approx((highest > height).mean(), abs=4 * math.sqrt(found / 200_000))


def test_far_out_the_reflection_principle_bounds_it():
    assert crossing_probability(9.0, even(5)) == pytest.approx(2 * norm.sf(9.0))
    assert crossing_probability(math.inf, even(5)) == 0
    assert crossing_probability(7.9, even(5)) < crossing_probability(7.5, even(5)) < 2 * norm.sf(7.5)
    assert crossing_probability(-1.0, (1.0,)) == pytest.approx(norm.sf(-1.0))


def test_looks_come_early_then_evenly_and_end_with_the_horizon():
    plan = Plan(1000, 64)
    assert plan.looks(1000)[:5] == [16, 32, 64, 128, 192]
    assert plan.looks(1000)[-2:] == [960, 1000]
    assert plan.looks(200) == [16, 32, 64, 128, 192]
    assert plan.looks(15) == []
    # Beyond the horizon they are as many again, and end with four times as many pairs.
    assert plan.looks(4000)[-1] == 4000
    assert 1024 in plan.looks(4000)
    assert Plan(256).looks(10**4)[-1] <= 10**4


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="horizon is 10; expected at least 16"):
        Plan(10)
    with pytest.raises(ValueError, match="no look is planned after 65 pairs"):
        Plan(1000).critical(65, 0.05)
    with pytest.raises(ValueError, match="share"):
        Plan(1000, share=1.0)


@pytest.mark.parametrize("horizon", [256, 1000])
def test_the_error_stays_below_alpha_under_early_stopping_and_after_continuation(horizon):
    plan, runs = Plan(horizon), 40_000
    looks = plan.looks(16 * horizon)
    steps = np.sqrt(np.diff([0, *looks]))
    paths = (np.random.default_rng(1).standard_normal((runs, len(looks))) * steps).cumsum(1)
    crossed = paths / np.sqrt(looks) > [plan.critical(count, 0.05) for count in looks]
    up_to_horizon = crossed[:, : looks.index(horizon) + 1].any(1).mean()
    assert up_to_horizon == pytest.approx(0.04, abs=4 * 0.001)  # the share that is spent there
    assert crossed.any(1).mean() < 0.05


def test_p_values_are_uniform_or_larger_and_agree_with_the_boundary():
    plan = Plan(256)
    looks = plan.looks(1024)
    rng = np.random.default_rng(2)
    values = []
    for _ in range(1500):
        path = (rng.standard_normal(len(looks)) * np.sqrt(np.diff([0, *looks]))).cumsum() / np.sqrt(looks)
        scores = dict(zip(looks, path, strict=True))
        values.append(plan.p_value(scores))
        rejected = any(score > plan.critical(count, 0.05) for count, score in scores.items())
        assert rejected == (values[-1] < 0.05)
    for level in (0.01, 0.05, 0.2):
        assert (np.array(values) <= level).mean() <= level + 3 * math.sqrt(level / 1500)


def test_power_and_cost_are_those_of_the_design():
    """A margin that a single look at 1,000 pairs would tell from 0 with power 0.95: what sequential looks keep and save."""
    plan = Plan(1000)
    looks = plan.looks(1000)
    effect = (norm.isf(0.05) + norm.isf(0.05)) / math.sqrt(1000)
    rng = np.random.default_rng(3)
    steps = np.diff([0, *looks])
    paths = (rng.standard_normal((20_000, len(looks))) * np.sqrt(steps) + effect * steps).cumsum(1) / np.sqrt(looks)
    crossed = paths > [plan.critical(count, 0.05) for count in looks]
    stopped = np.where(crossed.any(1), np.array(looks)[crossed.argmax(1)], 1000)
    assert crossed.any(1).mean() == pytest.approx(0.92, abs=0.01)
    assert stopped.mean() < 700


@pytest.mark.parametrize("degrees", [1, 15, 20, math.inf])
@pytest.mark.parametrize("score", [36.0, 37.6, 38.5, 40.0, 1e3, math.inf])
def test_far_scores_ask_for_no_smaller_ratio(degrees, score):
    """Where the tail of the normal distribution is no number any more, nothing is shown; an interval turned round would show anything."""
    assert as_ratio(score, degrees) >= score
    assert as_ratio(-score, degrees) <= -score


def test_a_first_look_of_a_long_plan_decides_nothing():
    plan, margins = Plan(10_000), Margins({"clip_score": Margin(margin=0.5, source="a test")}, pairs=10_000)
    for direction in (-1, 0, 1):
        look = Look(16, Estimate(-3.0 * (direction or 1), 1.5, 15), 87.0, 90.0, 5.0)
        rules = Rules(margins, {"clip_score": direction}, plan, family=1)
        found = rules.decide({"clip_score": [look]})
        assert found["clip_score"].word == "cannot tell"
        assert not rules.is_over(found)


def test_scores_and_ratios_are_each_others_inverse():
    for ratio in (-12.0, -2.0, 0.0, 0.5, 3.0, 30.0):
        score = as_normal(ratio, 15)
        assert as_ratio(score, 15) == pytest.approx(ratio, abs=1e-6)
        assert norm.sf(score) == pytest.approx(t.sf(ratio, 15), rel=1e-6)
    assert as_normal(math.inf, 15) == math.inf


def test_holm_rejects_step_by_step():
    # 0.01 <= 0.05/3, 0.02 <= 0.05/2, 0.04 <= 0.05: all; the second fails where the first took its place in a family of five.
    p_values = {"one": 0.04, "two": 0.01, "three": 0.02}
    assert holm(p_values, 0.05) == {"one", "two", "three"}
    assert holm(p_values, 0.05, family=5) == {"two"}
    assert holm({"one": 0.03, "two": 0.04}, 0.05) == set()
    assert holm({}, 0.05) == set()
