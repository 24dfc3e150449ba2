"""The conformance suite for schedulers: laws with exact answers, for schedulers of diffusers and of your own."""

from pytest_diffusion.conformance.parametrize import parametrize_with_scheduler_checks
from pytest_diffusion.conformance.suite import check_scheduler, scheduler_checks

__all__ = ["check_scheduler", "parametrize_with_scheduler_checks", "scheduler_checks"]
