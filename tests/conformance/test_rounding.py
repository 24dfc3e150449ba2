"""A verdict must not hang on a processor's last bit: scalars are rounded to both sides."""

import math

import diffusers
import pytest
import torch

from pytest_diffusion import check_scheduler
from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.rounding import Rounded
from pytest_diffusion.conformance.subject import Subject


class Cancels:
    """Takes the root of a difference that is zero but for rounding: what is left of a variance of which all is renewed."""

    guarded = False
    order = 1

    def set_timesteps(self, num_inference_steps):
        self.timesteps = torch.arange(num_inference_steps, 0, -1)

    def step(self, model_output, timestep, sample, generator=None):
        variance = torch.tensor(1.0) / (timestep + 2)
        rest = variance - (variance**0.5) ** 2
        return (sample + (rest.clamp(min=0) if self.guarded else rest) ** 0.5 * model_output,)


class Guarded(Cancels):
    guarded = True


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    "operation", [lambda a, b: a / b, lambda a, b: a**0.5 * b, lambda a, b: (a - b) ** 2, lambda a, b: (a + 5 * b).log()]
)
def test_scalars_are_rounded_away_from_the_exact_value_and_by_few_bits(operation, direction):
    a, b = torch.tensor(1.0) / 3, torch.tensor(0.7)
    exact = operation(a.double(), b.double())
    with Rounded(direction):
        rounded = operation(a, b)
    assert rounded.dtype == torch.float32
    gap = (float(rounded) - float(exact)) * direction
    assert 0 < gap < 4 * 2.0**-23 * abs(float(exact))


def test_exact_results_samples_and_other_dtypes_stay_as_they_are():
    sample = torch.linspace(0.1, 1, 8)
    with Rounded(1):
        assert float(torch.tensor(0.5) * 3) == 1.5
        assert torch.equal(sample.sqrt(), torch.linspace(0.1, 1, 8).sqrt())
        assert float(torch.tensor(1.0, dtype=torch.float64) / 3) == 1 / 3
        assert float(torch.tensor(1.0) / 0) == torch.inf


def test_a_root_that_hangs_on_the_last_bit_is_found_and_a_guarded_one_is_not():
    with pytest.raises(
        Crash,
        match=r"rounded up in the last bit, as on another processor, raises FloatingPointError: .* NaN and 0 infinite values",
    ):
        loops.require_finite_at_any_rounding(Subject(Cancels()), 5)
    loops.require_finite_at_any_rounding(Subject(Guarded()), 5)


class Stops(Cancels):
    def step(self, model_output, timestep, sample, generator=None):
        variance = torch.tensor(1.0) / (timestep + 2)
        return (sample + math.sqrt(variance - (variance**0.5) ** 2) * model_output,)


def test_a_loop_that_stops_with_an_error_under_rounding_is_no_pass():
    with pytest.raises(Crash, match="as on another processor, raises ValueError: math domain error"):
        loops.require_finite_at_any_rounding(Subject(Stops()), 5)


def test_a_loop_that_is_finite_on_this_processor_alone_breaks_runs():
    (verdict,) = check_scheduler(diffusers.EulerAncestralDiscreteScheduler(), only=["runs"], raise_on_failure=False)
    assert verdict.outcome == "fail"
    assert "rounded up in the last bit" in verdict.message
    (verdict,) = check_scheduler(diffusers.EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012), only=["runs"])
    assert verdict.outcome == "pass"
