"""Mistakes with plans that a caller names, with what a step says of its clean image, and with noising during a run."""

from types import SimpleNamespace

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tests.broken_schedulers import breaks
from tests.conformance.from_scratch import DDIM, FlowEuler

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


class Named(DDIM):
    """DDIM that takes a list of timesteps, correctly."""

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None):
        if timesteps is None:
            super().set_timesteps(num_inference_steps)
        else:
            self.timesteps = torch.tensor(timesteps)


class NamedFlow(FlowEuler):
    """A flow that takes sigmas, correctly."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None):
        shares = self.shares(num_inference_steps) if sigmas is None else self.given(torch.tensor(sigmas, dtype=torch.float64))
        self.sigmas = torch.cat([shares, torch.zeros(1)])
        self.timesteps = shares * self.num_train_timesteps
        self.step_index = None

    def given(self, sigmas):
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)


@breaks("given_timesteps", because="steps of a named plan go to t - T // N, as those of an even one do (DDPM)")
class StepsEvenly(DDPMScheduler):
    def previous_timestep(self, timestep):
        if self.custom_timesteps:
            return timestep - self.config.num_train_timesteps // len(self.timesteps)
        return super().previous_timestep(timestep)


@breaks("given_timesteps", because="a named plan is sorted the wrong way round by unique")
class SortsTheTimesteps(Named):
    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, None if timesteps is None else sorted(timesteps))


@breaks("given_timesteps", because="sigmas of a named plan are those of an even one")
class SigmasOfTheEvenPlan(EulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None):
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        if timesteps is not None:
            self.sigmas = type(self).planned(self, len(timesteps)).sigmas

    def planned(self, count):
        other = EulerDiscreteScheduler.from_config(self.config)
        other.set_timesteps(count)
        return other


@breaks("given_sigmas", because="the static shift is applied to named sigmas twice")
class ShiftedTwice(NamedFlow):
    shift = 3.0

    def given(self, sigmas):
        return super().given(super().given(sigmas))


@breaks("given_sigmas", because="named sigmas keep the timesteps of an even plan", shift=1.0)
class TimestepsOfTheEvenPlan(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if sigmas is not None:
            self.timesteps = torch.linspace(1000, 1000 / len(sigmas), len(sigmas))


@breaks("named_shift", because="mu is taken for the shift, not for its logarithm", use_dynamic_shifting=True)
class ShiftsByMuItself(FlowMatchEulerDiscreteScheduler):
    def time_shift(self, mu, sigma, t):
        return self._time_shift_linear(1 + mu, sigma, t)


@breaks("named_shift", because="a mu that is given is forgotten for that of the largest image", use_dynamic_shifting=True)
class ShiftsTheSameForAll(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, sigmas, self.config.max_shift, timesteps)


@breaks("given_noise", because="noise that is given is replaced by noise that is drawn", clip_sample=False)
class DrawsAllTheSame(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None, variance_noise=None):
        return super().step(model_output, timestep, sample, eta=eta, generator=generator)


@breaks("given_noise", because="noise that is given is added with its variance, not its deviation", clip_sample=False)
class AddsTheVariance(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None, variance_noise=None):
        if variance_noise is not None:
            previous = timestep - self.config.num_train_timesteps // self.num_inference_steps
            variance_noise = variance_noise * self._get_variance(timestep, previous) ** 0.5
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, variance_noise=variance_noise)


@breaks("predicted_original", because="the preview is the denoiser's noise for a velocity", prediction_type="v_prediction")
class PreviewOfTheOutput(DDIM):
    def __init__(self, prediction_type):
        super().__init__()
        self.prediction_type = prediction_type

    def clean_and_noise(self, model_output, sample, product):
        clean = product.sqrt() * sample - (1 - product).sqrt() * model_output
        return clean, product.sqrt() * model_output + (1 - product).sqrt() * sample

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        gave = super().step(model_output, timestep, sample, eta, generator)
        noisy = super().clean_and_noise(model_output, sample, self.product(timestep))[0]
        return SimpleNamespace(prev_sample=gave.prev_sample, pred_original_sample=noisy / self.product(timestep).sqrt())


@breaks("predicted_original", because="the preview is made after the step, from a sample that has moved on")
class PreviewAfterTheStep(EulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, **kwargs):
        gave = super().step(model_output, timestep, sample, **kwargs)
        if not isinstance(gave, tuple):
            gave.pred_original_sample = gave.prev_sample - self.sigmas[self.step_index - 1] * model_output
        return gave


@breaks("noising_in_a_run", because="known pixels keep the noise of the begin index for the whole run")
class NoiseOfTheBegin(EulerDiscreteScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        if self.begin_index is None:
            return super().add_noise(original_samples, noise, timesteps)
        return original_samples + self.sigmas[self.begin_index] * noise


@breaks("noising_in_a_run", because="a begin index is taken for the first step of all", use_karras_sigmas=True)
class NoiseOfTheFirst(UniPCMultistepScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        if self.begin_index is not None and self.step_index is None:
            sigma = self.sigmas[0]
            return (original_samples + sigma * noise) / (1 + sigma**2).sqrt()
        return super().add_noise(original_samples, noise, timesteps)


@breaks("noising_in_a_run", because="the step that was just taken is noised to, not the next one", use_karras_sigmas=True)
class NoiseOfTheStepBefore(DPMSolverMultistepScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        if self.step_index is not None:
            sigma = self.sigmas[self.step_index - 1]
            return (original_samples + sigma * noise) / (1 + sigma**2).sqrt()
        return super().add_noise(original_samples, noise, timesteps)


@breaks("named_shift", because="flow_shift is documented and never read", **FLOW)
class ForgetsTheFlowShift(DPMSolverMultistepScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, mu, timesteps)
        shift = self.config.flow_shift
        self.sigmas = self.sigmas / (shift - (shift - 1) * self.sigmas)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps


@breaks("second_run", because="the begin index of an image-to-image run is kept for the next plan")
class BeginIndexSurvives(EulerDiscreteScheduler):
    def set_timesteps(self, *args, **kwargs):
        kept = self._begin_index
        super().set_timesteps(*args, **kwargs)
        self._begin_index = kept


@breaks("second_run", because="a named plan is kept when the next one is even")
class NamedPlanSurvives(Named):
    kept = None

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None):
        self.kept = timesteps if timesteps is not None else self.kept
        super().set_timesteps(num_inference_steps, device, self.kept)
