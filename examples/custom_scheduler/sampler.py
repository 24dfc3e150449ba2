"""A sampler as a function that calls its model itself, as in k-diffusion; and the same scheduler, rewritten to be faster."""

from itertools import pairwise

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from scheduler import AncestralScheduler


def sample_euler(model, x, sigmas):
    """Euler in σ; the model gives the clean image."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)))
        x = denoised + (after / sigma).to(x) * (x - denoised)
    return x


class FasterScheduler(AncestralScheduler):
    """The weights of each step are computed once, when the plan is made."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        here = self.alphas_cumprod[self.timesteps].double()
        there = torch.cat([here[1:], torch.ones(1, dtype=torch.float64)])
        deviation = ((1 - there) / (1 - here) * (1 - here / there)).clamp(min=0).sqrt()
        self.weights = torch.stack([there.sqrt(), (1 - there - deviation**2).clamp(min=0).sqrt(), deviation], dim=1)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        place = int((self.timesteps == timestep).nonzero()[0])
        clean, noise = self._parts(model_output.double(), sample.double(), self.alphas_cumprod[timestep].double())
        of_image, of_noise, deviation = self.weights[place]
        arrived = of_image * clean + of_noise * noise
        if place + 1 < len(self.timesteps):
            arrived = arrived + deviation * randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        return SchedulerOutput(prev_sample=arrived.to(sample.dtype))
