"""What is a refusal and what is a crash: of numbers of steps, of model outputs, of dtypes, and of entries of the configuration."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pytest_diffusion import check_scheduler
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.refusals import is_on_purpose, refuses_count
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import NotApplicable
from tests.conformance.from_scratch import DDIM


def judged(scheduler, **rest):
    return {verdict.check: verdict for verdict in check_scheduler(scheduler, raise_on_failure=False, **rest)}


def gating(verdicts):
    return {name for name, verdict in verdicts.items() if verdict.gates}


class LosesItsTable(DDIM):
    """Takes outputs, and dies in long plans with a text about them."""

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        if len(self.timesteps) >= 20:
            raise ValueError("lost the channels of the table")
        return super().step(model_output, timestep, sample, eta, generator)


class WantsTwiceTheChannels(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        raise ValueError("model_output needs twice the channels of the sample")


def test_an_error_about_outputs_is_a_refusal_only_where_the_first_step_of_all_has_it():
    verdicts = judged(LosesItsTable)
    assert "runs" in gating(verdicts)
    assert "lost the channels of the table" in verdicts["runs"].message
    verdicts = judged(WantsTwiceTheChannels, only=["runs", "dtype_kept"])
    assert "takes model outputs of another form: " in verdicts["dtype_kept"].message


class DiesInHalf(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        if original_samples.dtype == torch.float16:
            raise RuntimeError("no kernel for Half")
        return super().add_noise(original_samples, noise, timesteps)


class RefusesHalf(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        if original_samples.dtype == torch.float16:
            raise ValueError("the dtype of images is float32 or float64")
        return super().add_noise(original_samples, noise, timesteps)


def test_noising_that_dies_in_one_dtype_is_a_finding_and_a_refusal_is_none():
    verdicts = judged(DiesInHalf)
    assert gating(verdicts) == {"dtype_kept"}
    assert "no kernel for Half" in verdicts["dtype_kept"].message
    assert not gating(judged(RefusesHalf))


class TwoDefects(DDIM):
    """The same error at two places: in long plans, and in runs that start later."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.done = 0

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        if len(self.timesteps) == 50:
            raise IndexError("list index out of range")
        if self.done == 0 and len(self.timesteps) > 5 and timestep == self.timesteps[5]:
            raise IndexError("list index out of range")
        self.done += 1
        return super().step(model_output, timestep, sample, eta, generator)


def test_equal_errors_at_two_places_are_two_defects():
    verdicts = judged(TwoDefects)
    assert {"runs", "partial_start"} <= gating(verdicts)


class Unsorted(DDIM):
    """An assertion of its own that fails at two numbers of steps; it is no refusal of them."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps in (7, 20):
            raise ValueError("internal error: the timesteps are not sorted")


class NoSevens(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        if num_inference_steps in (7, 20):
            raise ValueError(f"no plan for {num_inference_steps} steps")
        super().set_timesteps(num_inference_steps)


def test_refused_numbers_of_steps_are_told():
    assert "the timesteps are not sorted" in judged(Unsorted)["runs"].message
    verdicts = judged(NoSevens)
    assert not gating(verdicts)
    assert verdicts["runs"].message.endswith("It refuses 7, 20 steps: no plan for 7 steps")
    assert verdicts["runs"].measurement.protocol["refused"] == [7, 20]
    assert "refuses" not in judged(DDIM, only=["runs"])["runs"].message


class OfTorch(torch.nn.Module):
    def set_timesteps(self, num_inference_steps, device=None):
        # Said, because torch's compiler turns the default off for the whole process.
        torch.distributions.Normal(torch.zeros(1), -1.0 * num_inference_steps, validate_args=True)

    def step(self, model_output, timestep, sample):
        return (sample,)


def test_what_torch_raises_is_no_word_of_a_module():
    with pytest.raises(ValueError, match="scale") as found:
        OfTorch().set_timesteps(3)
    assert not is_on_purpose(found.value, OfTorch)
    assert not refuses_count(found.value, 3, OfTorch)


def test_entries_are_refused_on_purpose_or_by_name_and_else_it_is_a_crash():
    class Named(DDIMScheduler):
        def __init__(self, beta_schedule="linear", **rest):
            if beta_schedule == "scaled_linear":
                np.zeros(2) + np.zeros(3)
            super().__init__(beta_schedule={"linear": "linear", "squaredcos_cap_v2": "squaredcos_cap_v2"}[beta_schedule], **rest)

    subject = Subject(Named())
    with pytest.raises(NotApplicable, match="does not take beta_schedule='laplace'"):
        subject.with_config(beta_schedule="laplace")
    with pytest.raises(Crash, match=r"from_config\(..., beta_schedule='scaled_linear'\) raises ValueError: operands"):
        subject.with_config(beta_schedule="scaled_linear")
    assert "operands could not be broadcast" in judged(Named(), only=["named_betas"])["named_betas"].message


@pytest.mark.parametrize(
    "check", ["point_mass_preserved", "noise_amount", "aborted_run", "copies_behave", "noising_in_a_run", "sigmas_fall"]
)
def test_a_plan_of_one_step_shows_nothing_to_a_law_of_two(check):
    verdict = judged(DDIMScheduler(), num_inference_steps=[1])[check]
    assert verdict.outcome == "skipped"
    assert "at least 2 inference steps" in verdict.message or "sigmas" in verdict.message


def test_numbers_of_steps_begin_at_one():
    with pytest.raises(ValueError, match="num_inference_steps has 0; expected numbers of at least 1"):
        check_scheduler(DDIM, num_inference_steps=[0, 50])


def test_a_flow_that_plans_no_training_schedule_is_not_looked_at():
    class FewSteps(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, **rest):
            if num_inference_steps is not None and num_inference_steps > 100:
                raise ValueError("at most 100 steps")
            super().set_timesteps(num_inference_steps, device=device, **rest)

    verdict = judged(FewSteps(), only=["timesteps_cover"])["timesteps_cover"]
    assert verdict.outcome == "broken"  # the only check, and it saw nothing
    assert "has no plan of 1000 steps" in verdict.message
