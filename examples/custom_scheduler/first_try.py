"""A scheduler as one might write it on a first afternoon: ancestral sampling with evenly spaced timesteps. It has three mistakes."""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


class FirstTry(SchedulerMixin, ConfigMixin):
    """Images come out, and look nearly right."""

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02):
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.init_noise_sigma = 1.0
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device=None):
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.linspace(self.config.num_train_timesteps - 1, 0, num_inference_steps).round().long()

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        # Mistake 1: the next timestep is not T // N below this one on this grid.
        before = int(timestep) - self.config.num_train_timesteps // self.num_inference_steps
        here = self.alphas_cumprod[timestep]
        there = self.alphas_cumprod[before] if before >= 0 else torch.tensor(1.0)
        clean = (sample - (1 - here).sqrt() * model_output) / here.sqrt()
        deviation = ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        arrived = there.sqrt() * clean + (1 - there - deviation**2).clamp(min=0).sqrt() * model_output
        # Mistake 2: the generator is forgotten, so a seed does not give the same image twice.
        arrived = arrived + deviation * torch.randn_like(sample)
        return SchedulerOutput(prev_sample=arrived)

    def add_noise(self, original_samples, noise, timesteps):
        # Mistake 3: one timestep for the whole batch.
        product = self.alphas_cumprod[timesteps[0]]
        return product.sqrt() * original_samples + (1 - product).sqrt() * noise
