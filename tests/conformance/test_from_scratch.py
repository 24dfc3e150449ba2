"""Correct schedulers that nobody prepared for the suite pass it."""

import pytest

from pytest_diffusion import check_scheduler
from tests.conformance.from_scratch import CORRECT

ALL = {one.__name__ for one in CORRECT}
STOCHASTIC = {"LargeVariance", "Ancestral"}
IN_THE_LIMIT = {"RungeKuttaInLogSigma"}
"""Exact for a single image with infinitely many steps only."""
WITHOUT_SIGMAS = {"DDIM", "LargeVariance"}
SEEN = {
    "convergence_order": ALL - STOCHASTIC,
    "weak_convergence": {"DDIM", *STOCHASTIC},
    "point_mass_preserved": ALL - IN_THE_LIMIT,
    "noise_amount": {"DDIM"},
    "churn": {"Churned"},
    "timesteps_are_nearest": ALL - WITHOUT_SIGMAS - {"FlowEuler", "Unscaled"},
    "forward_process": ALL,
    "partial_start": ALL - IN_THE_LIMIT,
}
"""Which checks must look at which classes, so that the suite does not pass them all by skipping."""


@pytest.mark.parametrize("scheduler_class", CORRECT, ids=lambda one: one.__name__)
def test_correct_schedulers_pass(scheduler_class):
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(scheduler_class)}
    assert set(verdicts.values()) <= {"pass", "skipped"}
    for check, names in SEEN.items():
        # A suite that skips everything would pass everything.
        assert (verdicts[check] == "pass") == (scheduler_class.__name__ in names), check
