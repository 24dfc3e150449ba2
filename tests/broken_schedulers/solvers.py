"""Mistakes of higher order: consistent updates that lose accuracy, and configurations that should agree and do not."""

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from tests.broken_schedulers import breaks
from tests.conformance.from_scratch import Ancestral, Multistep, RungeKutta


@breaks("convergence_order", because="weights for even steps on an uneven grid (LMS, Adams-Bashforth)")
class WeightsOfEvenSteps(Multistep):
    def weights(self, before, now, after):
        return 1.5, -0.5


@breaks("convergence_order", because="the sign of the correction is wrong")
class CorrectionReversed(Multistep):
    def weights(self, before, now, after):
        own, old = super().weights(before, now, after)
        return 2 - own, -old


@breaks("convergence_order", because="the history is emptied in every step: second order in name only")
class NoMemory(Multistep):
    def step(self, model_output, timestep, sample):
        self.previous = None
        return super().step(model_output, timestep, sample)


@breaks("convergence_order", because="a stage of Kutta's method has the weights of another method's")
class WrongTableau(RungeKutta):
    stages = ((), (0.5,), (0.0, 1.0))


@breaks("convergence_order", because="the second-order term of DPM-Solver++ has a factor of two too much")
class TwiceTheSecondOrder(DPMSolverMultistepScheduler):
    def multistep_dpm_solver_second_order_update(self, model_output_list, *args, sample=None, noise=None, **kwargs):
        now, before = model_output_list[-1], model_output_list[-2]
        return super().multistep_dpm_solver_second_order_update([2 * before - now, now], *args, sample=sample, noise=noise, **kwargs)


@breaks("weak_convergence", because="the clean prediction of the first step is cached and used in all steps")
class StalePrediction(Ancestral):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.clean = None

    def derivative(self, model_output, sample, sigma):
        if self.clean is None:
            self.clean = sample.double() - sigma * model_output.double()
        return (sample.double() - self.clean) / sigma


@breaks("prediction_types_agree", because="velocity is turned into noise with the signs of another convention")
class VelocityOfAnotherConvention(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        if self.config.prediction_type == "v_prediction":
            model_output = -model_output
        return super().step(model_output, timestep, sample, **rest)


@breaks("prediction_types_agree", because="an image prediction is scaled like a noisy one (Heun)")
class ScaledImage(HeunDiscreteScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        if self.config.prediction_type == "sample":
            model_output = model_output * 0.9
        return super().step(model_output, timestep, sample)


@breaks("thresholding", because="x̂₀ is clipped to the largest value and divided by it: sample_max_value as a lower bound (DDIM, #3003)")
class MaximumAsLowerBound(DDPMScheduler):
    def _threshold_sample(self, sample):
        return sample.clamp(-1, 1) / self.config.sample_max_value


@breaks("thresholding", because="the quantile is taken over the batch: one image bounds another")
class QuantileOfTheBatch(DDIMScheduler):
    def _threshold_sample(self, sample):
        bound = sample.abs().float().flatten().quantile(self.config.dynamic_thresholding_ratio).clamp(1, self.config.sample_max_value)
        return sample.clamp(-bound, bound) / bound


@breaks("thresholding", because="clip_sample clips to ±1 whatever clip_sample_range says", clip_sample_range=2.0)
class RangeIgnored(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        gave = super().step(model_output, timestep, sample, **{**rest, "return_dict": True})
        if self.config.clip_sample and timestep < 1000 // self.num_inference_steps:
            gave.prev_sample = gave.prev_sample.clamp(-1, 1)
        return gave


@breaks("zero_terminal_snr", because="the division by √ᾱ = 0 is not avoided")
class DividesByZero(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        gave = super().step(model_output, timestep, sample, **{**rest, "return_dict": True})
        gave.prev_sample = gave.prev_sample * (self.alphas_cumprod[timestep] / self.alphas_cumprod[timestep])
        return gave


@breaks("zero_terminal_snr", because="betas are rescaled to a small SNR that is not zero")
class NotQuiteZero(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.config.rescale_betas_zero_snr:
            self.alphas_cumprod = self.alphas_cumprod.clamp(min=1e-3)
