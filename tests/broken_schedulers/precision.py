"""Mistakes with dtypes, shapes and scales: of noising, of the model's input, of schedules, of the second order."""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)

from tests.broken_schedulers import breaks
from tests.conformance.from_scratch import DDIM


@breaks("model_input", because="the sample is divided by the variance, not by its root")
class ScalesByTheVariance(EulerDiscreteScheduler):
    def scale_model_input(self, sample, timestep):
        super().scale_model_input(sample, timestep)
        return sample / (self.sigmas[self.step_index] ** 2 + 1)


@breaks("model_input", because="the deviation of the data is taken for 1 (EDM)")
class ForgetsTheData(EDMEulerScheduler):
    def precondition_inputs(self, sample, sigma):
        return sample / (sigma**2 + 1) ** 0.5


@breaks("dtype_kept", because="noising of a half image is float32 (#767)", clip_sample=False)
class NoisesInFloat32(DDIMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples.float(), noise.float(), timesteps)


@breaks("ranks", because="noising spells out four dimensions")
class NoisesImagesOnly(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        product = self.alphas_cumprod[timesteps.long()][:, None, None, None]
        return (product.sqrt() * original_samples + (1 - product).sqrt() * noise).to(original_samples.dtype)


@breaks("forward_is_pure", because="noising a half image casts the schedule itself, for good")
class CastsTheSchedule(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        self.alphas_cumprod = self.alphas_cumprod.to(original_samples.dtype)
        return super().add_noise(original_samples, noise, timesteps)


@breaks("velocity", because="the first timestep of a batch is used for all of its velocities")
class OneVelocityForAll(DDIM):
    def get_velocity(self, sample, noise, timesteps):
        return super().get_velocity(sample, noise, timesteps[:1])


@breaks("noise_amount", because="learned_range is interpolated between variances (#2090)", variance_type="learned_range", clip_sample=False)
class InterpolatesVariances(DDPMScheduler):
    def _get_variance(self, t, predicted_variance=None, variance_type=None):
        if predicted_variance is None:
            return super()._get_variance(t, predicted_variance, variance_type)
        small = super()._get_variance(t, predicted_variance, "fixed_small")
        large = super()._get_variance(t, predicted_variance, "fixed_large")
        share = (predicted_variance + 1) / 2
        return torch.log(share * large + (1 - share) * small)


@breaks("named_betas", because="betas that are given are ignored for those of the schedule (#635)", clip_sample=False)
class IgnoresGivenBetas(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.config.trained_betas is not None:
            self.alphas_cumprod = DDIMScheduler(clip_sample=False).alphas_cumprod


@breaks("zero_terminal_snr", because="the rescaled schedule is shifted to zero, and not scaled back", clip_sample=False)
class ShiftsOnly(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.config.rescale_betas_zero_snr:
            roots = DDIMScheduler(clip_sample=False).alphas_cumprod.sqrt()
            self.alphas_cumprod = (roots - roots[-1]).square()


@breaks("terminal_step", because="final_sigmas_type='zero' ends at the smallest sigma", use_karras_sigmas=True)
class EndsAtTheSmallest(DPMSolverMultistepScheduler):
    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.sigmas = torch.cat([self.sigmas[:-1], self.sigmas[-2:-1] / 2])


@breaks("convergence_order", because="weights of Adams-Bashforth that add up to one, and are not its own", skip_prk_steps=True)
class OtherWeights(PNDMScheduler):
    def step_plms(self, model_output, timestep, sample, return_dict=True):
        if len(self.ets) >= 2 and self.counter != 1:
            model_output = model_output + 0.3 * (self.ets[-1] - self.ets[-2])
        return super().step_plms(model_output, timestep, sample, return_dict)


@breaks("convergence_order", "timesteps_are_nearest", because="the corrector is never applied", use_exponential_sigmas=True)
class NeverCorrects(UniPCMultistepScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        self.last_sample = None
        return super().step(model_output, timestep, sample, return_dict)


@breaks("point_mass_preserved", because="where nothing is known, the old noise is weighed by its variance (RePaint)", clip_sample=False)
class WeighsByTheVariance(RePaintScheduler):
    def step(self, model_output, timestep, sample, original_image, mask, generator=None, return_dict=True):
        gave = super().step(model_output, timestep, sample, original_image, mask, generator, return_dict)
        before = timestep - self.config.num_train_timesteps // self.num_inference_steps
        product = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        root = (1 - product - self._get_variance(timestep) * self.eta**2).clamp(min=0) ** 0.5
        moved = gave[0] if isinstance(gave, tuple) else gave.prev_sample
        moved += (1 - mask) * (root**2 - root) * model_output
        return gave


@breaks("noising_alone", because="add_noise draws its own noise (#3839)")
class DrawsItsOwn(ScoreSdeVeScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, torch.randn_like(noise), timesteps)
