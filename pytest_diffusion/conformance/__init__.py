"""The conformance suite: laws with exact solutions, for schedulers of diffusers and for your own schedulers."""

from pytest_diffusion.conformance.parametrize import parametrize_with_scheduler_checks
from pytest_diffusion.conformance.suite import check_scheduler, scheduler_checks

__all__ = ["check_scheduler", "parametrize_with_scheduler_checks", "scheduler_checks"]
