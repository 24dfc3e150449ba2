"""Correct schedulers that nobody prepared for the suite pass it."""

import pytest

from pytest_diffusion import check_scheduler
from tests.conformance.from_scratch import CORRECT

SEEN = {
    "convergence_order": {
        "DDIM",
        "Euler",
        "Unscaled",
        "Churned",
        "Rounded",
        "Heun",
        "RungeKutta",
        "RungeKuttaInLogSigma",
        "FlowEuler",
        "Multistep",
    },
    "weak_convergence": {"DDIM", "LargeVariance", "Ancestral"},
    "point_mass_preserved": {
        "DDIM",
        "LargeVariance",
        "Euler",
        "Unscaled",
        "Ancestral",
        "Churned",
        "Rounded",
        "Heun",
        "RungeKutta",
        "FlowEuler",
        "Multistep",
    },
    "noise_amount": {"DDIM"},
    "churn": {"Churned"},
    "timesteps_are_nearest": {"Euler", "Ancestral", "Churned", "Rounded", "Heun", "RungeKutta", "RungeKuttaInLogSigma", "Multistep"},
    "forward_process": {one.__name__ for one in CORRECT},
    "partial_start": {
        "DDIM",
        "LargeVariance",
        "Euler",
        "Unscaled",
        "Ancestral",
        "Churned",
        "Rounded",
        "Heun",
        "RungeKutta",
        "FlowEuler",
        "Multistep",
    },
}


@pytest.mark.parametrize("scheduler_class", CORRECT, ids=lambda one: one.__name__)
def test_correct_schedulers_pass(scheduler_class):
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(scheduler_class)}
    assert set(verdicts.values()) <= {"pass", "skipped"}
    for check, names in SEEN.items():
        # A suite that skips everything would pass everything.
        assert (verdicts[check] == "pass") == (scheduler_class.__name__ in names), check
