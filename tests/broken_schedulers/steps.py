"""Mistakes of a single step: where it arrives, what it leaves of the image, and how much noise it adds."""

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, LCMScheduler, RePaintScheduler
from diffusers.utils.torch_utils import randn_tensor

from tests.broken_schedulers import breaks
from tests.conformance.from_scratch import DDIM, Ancestral, Churned, Euler, FlowEuler, Heun, Rounded


@breaks(
    "point_mass_preserved",
    because="the previous timestep is t − T//N whatever the spacing (DDPM, #9384)",
    timestep_spacing="linspace",
    clip_sample=False,
)
class PreviousByDivision(DDPMScheduler):
    def previous_timestep(self, timestep):
        return timestep - self.config.num_train_timesteps // self.num_inference_steps


@breaks("point_mass_preserved", because="ᾱ of the next timestep is used for the present one")
class AlphaOfTheWrongTimestep(DDIM):
    def product(self, timestep):
        return super().product(max(timestep - 1, torch.tensor(0))) if timestep > 0 else super().product(timestep)


@breaks("point_mass_preserved", because="the root of ᾱ is forgotten in front of the image")
class RootForgotten(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        here, there = self.product(timestep), self.product(self.after(timestep))
        clean, noise = self.clean_and_noise(model_output, sample, here)
        return self.gave((there * clean + (1 - there).sqrt() * noise).to(sample.dtype))


@breaks("prediction_types_agree", because="x̂₀ is given in place of ε where the model predicts the image (DDIM, #2094)", clip_sample=False)
class ImageTakenForNoise(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        gave = super().step(model_output, timestep, sample, **rest)
        if self.config.prediction_type == "sample":
            before = timestep - 1000 // self.num_inference_steps
            there = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
            gave.prev_sample = there.sqrt() * model_output + (1 - there).sqrt() * model_output
        return gave


@breaks("terminal_step", because="the sample is noised again after the last step (LCM, #5681)")
class NoisyEnd(LCMScheduler):
    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        gave = super().step(model_output, timestep, sample, generator)
        if self.step_index == len(self.timesteps):
            noise = randn_tensor(sample.shape, generator=generator, dtype=sample.dtype)
            gave.prev_sample = self.add_noise(gave.prev_sample, noise, torch.tensor([259]))
        return gave


@breaks("terminal_step", because="the last step lands on ᾱ of timestep 0 whatever set_alpha_to_one says", clip_sample=False)
class EndsBeforeTheEnd(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        kept, self.final_alpha_cumprod = self.final_alpha_cumprod, self.alphas_cumprod[0]
        try:
            return super().step(model_output, timestep, sample, **rest)
        finally:
            self.final_alpha_cumprod = kept


@breaks("point_mass_preserved", because="the known region is noised to level t where t − 1 is next (RePaint, #1582)")
class KnownRegionTooNoisy(RePaintScheduler):
    def step(self, model_output, timestep, sample, original_image, mask, generator=None, return_dict=True):
        gave = super().step(model_output, timestep, sample, original_image, mask, generator)
        product = self.alphas_cumprod[timestep]
        noise = randn_tensor(sample.shape, generator=generator, dtype=sample.dtype)
        known = product.sqrt() * original_image + (1 - product).sqrt() * noise
        gave.prev_sample = mask * known + (1 - mask) * gave.prev_sample
        return gave


@breaks("point_mass_preserved", because="σ_up and σ_down are exchanged")
class UpAndDownExchanged(Ancestral):
    def amounts(self, sigma, after):
        down, up = super().amounts(sigma, after)
        return up, down * 0.5


@breaks("point_mass_preserved", because="noise is added without taking the old noise down (Euler to σ, not to σ_down)")
class NoiseOnTop(Ancestral):
    def amounts(self, sigma, after):
        return after, super().amounts(sigma, after)[1]


@breaks("noise_amount", because="η scales the variance where it should scale the deviation; every marginal is right")
class EtaSquared(DDIM):
    def deviation(self, here, there, eta):
        return super().deviation(here, there, 1.0) * eta**0.5 if eta else torch.zeros(())


@breaks(
    "noise_amount",
    because="the upper bound of learned_range is β of the training grid, not of the step (DDPM, #3006)",
    variance_type="learned_range",
    clip_sample=False,
)
class LearnedRangeOfTraining(DDPMScheduler):
    def _get_variance(self, t, predicted_variance=None, variance_type=None):
        if self.config.variance_type != "learned_range":
            return super()._get_variance(t, predicted_variance, variance_type)
        small = super()._get_variance(t, predicted_variance, "fixed_small").log()
        share = (predicted_variance + 1) / 2
        return share * self.betas[t].log() + (1 - share) * small


@breaks(
    "noise_amount", because="fixed_large uses β of one training step for a step over many", variance_type="fixed_large", clip_sample=False
)
class LargeVarianceOfTraining(DDPMScheduler):
    def _get_variance(self, t, predicted_variance=None, variance_type=None):
        return self.betas[t]


@breaks("noise_is_normal", because="noise is uniform: torch.rand for torch.randn")
class UniformNoise(Ancestral):
    def draw(self, sample, generator):
        if isinstance(generator, list):
            return torch.cat([self.draw(sample[:1], one) for one in generator])
        return ((torch.rand(sample.shape, generator=generator) - 0.5) * 12**0.5).to(sample)


@breaks("noise_is_normal", because="noise comes from numpy's global state, which no generator of torch can seed")
class NoiseOfNumpy(Ancestral):
    def draw(self, sample, generator):
        return torch.from_numpy(np.random.randn(*sample.shape)).to(sample)


@breaks("noise_is_normal", because="one image's noise is added to the whole batch")
class OneNoiseForAll(Ancestral):
    def draw(self, sample, generator):
        if isinstance(generator, list):
            return super().draw(sample, generator)
        return torch.randn(1, *sample.shape[1:], generator=generator).to(sample)


@breaks("noise_is_normal", "point_mass_preserved", because="the noise of the first step is kept and added in every step")
class SameNoiseEveryStep(Ancestral):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.kept = None

    def draw(self, sample, generator):
        drawn = super().draw(sample, generator)
        self.kept = drawn if self.kept is None or self.kept.shape != drawn.shape else self.kept
        return self.kept


@breaks("point_mass_preserved", because="the velocity is taken the wrong way round: image − noise")
class VelocityReversed(FlowEuler):
    prediction_type = "flow_prediction"

    def step(self, model_output, timestep, sample):
        return super().step(-model_output, timestep, sample)


@breaks("point_mass_preserved", because="the step is Δt of an even grid, whatever the shift of the sigmas")
class EvenSteps(FlowEuler):
    shift = 3.0

    def step(self, model_output, timestep, sample):
        self.step_index = (self.index(timestep) if self.step_index is None else self.step_index) + 1
        return self.gave(sample - model_output / len(self.timesteps))


@breaks("convergence_order", because="the corrector averages nothing: Heun's second slope is used alone")
class SecondSlopeAlone(Heun):
    def corrected(self, start, span, before, slope):
        return start + span * slope


@breaks("point_mass_preserved", because="the corrector's weights do not add up to one")
class WeightsOfTwoThirds(Heun):
    def corrected(self, start, span, before, slope):
        return start + span * (before + slope) / 3


@breaks("point_mass_preserved", because="the model's input is not scaled back: the update uses the scaled sample")
class UpdatesTheScaledSample(Euler):
    def step(self, model_output, timestep, sample):
        sigma = self.sigmas[self.now(timestep)]
        return super().step(model_output, timestep, sample / float((sigma**2 + 1) ** 0.5))


@breaks("churn", because="the noise is raised, and the step goes on from the old level")
class ChurnForgotten(Churned):
    def step(self, model_output, timestep, sample, s_churn=0.0, generator=None):
        if s_churn > 0:
            sample = sample + 0.3 * self.sigmas[self.now(timestep)].float() * DDIM.draw(self, sample, generator)
        return Euler.step(self, model_output, timestep, sample)


@breaks("undo_step", because="the noise of an undone step has its variance for its deviation")
class UndoesTooLittle(RePaintScheduler):
    def undo_step(self, sample, timestep, generator=None):
        return sample + 1e-3 * randn_tensor(sample.shape, generator=generator)


@breaks("clipped_output", because="use_clipped_model_output is taken and not used")
class NeverReclips(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, use_clipped_model_output=False, **rest):
        return super().step(model_output, timestep, sample, eta, False, **rest)


@breaks("timesteps_are_nearest", because="whole timesteps are cut off, not rounded (exponential and beta sigmas of the DPM-Solvers)")
class CutOff(Rounded):
    def timestep_of(self, sigma):
        return Euler.timestep_of(self, sigma).floor()


@breaks("inverse_direction", "inversion_round_trip", because="an inverse scheduler whose plan was not turned round")
class InverseInNameOnly(DDIMInverseScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps.flip(0)
