"""The conformance suite: laws with exact solutions, for schedulers of diffusers, for your own schedulers, and for ports of either."""

from pytest_diffusion.conformance.adapters import Adapter, ADMDiffusion, KDiffusionSampler, NumpyScheduler
from pytest_diffusion.conformance.parametrize import parametrize_with_scheduler_checks
from pytest_diffusion.conformance.revisions import check_equivalence
from pytest_diffusion.conformance.suite import check_scheduler, scheduler_checks

__all__ = [
    "ADMDiffusion",
    "Adapter",
    "KDiffusionSampler",
    "NumpyScheduler",
    "check_equivalence",
    "check_scheduler",
    "parametrize_with_scheduler_checks",
    "scheduler_checks",
]
