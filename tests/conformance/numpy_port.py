"""DDIM of diffusers, ported to NumPy: the same plan and the same arithmetic, on arrays of another runtime."""

from types import SimpleNamespace

import numpy as np
import torch


class NumpyDDIM:
    """`DDIMScheduler` without torch, except where it is handed tensors."""

    init_noise_sigma = 1.0
    order = 1

    def __init__(self, beta_schedule="linear", clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon"):
        self.num_train_timesteps = 1000
        self.clip_sample, self.steps_offset, self.prediction_type = clip_sample, steps_offset, prediction_type
        self.beta_schedule, self.set_alpha_to_one = beta_schedule, set_alpha_to_one
        first, last, one = np.float32(1e-4), np.float32(0.02), np.float32(1)
        if beta_schedule == "linear":
            betas = torch.linspace(float(first), float(last), 1000).numpy()
        elif beta_schedule == "scaled_linear":
            betas = (torch.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2).numpy()
        else:
            raise NotImplementedError(beta_schedule)
        self.products = np.cumprod(one - betas, dtype=np.float32)
        self.end = one if set_alpha_to_one else self.products[0]

    def set_timesteps(self, num_inference_steps, device=None):
        if num_inference_steps > 1000:
            raise ValueError("no more inference steps than 1000 training steps")
        self.count = num_inference_steps
        ratio = 1000 // num_inference_steps
        self.timesteps = (np.arange(num_inference_steps) * ratio).round()[::-1].astype(np.int64) + self.steps_offset

    def product(self, timestep):
        return self.products[timestep] if timestep >= 0 else self.end

    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        timestep = int(timestep)
        output, own = (one.float().numpy() if one.dtype == torch.bfloat16 else one.numpy() for one in (model_output, sample))
        here, there = self.product(timestep), self.product(timestep - 1000 // self.count)
        one = np.float32(1)
        alpha, sigma = np.sqrt(here), np.sqrt(one - here)
        if self.prediction_type == "epsilon":
            clean, noise = (own - sigma * output) / alpha, output
        elif self.prediction_type == "sample":
            clean, noise = output, (own - alpha * output) / sigma
        else:
            clean, noise = alpha * own - sigma * output, alpha * output + sigma * own
        if self.clip_sample:
            clean = clean.clip(-1, 1)
        variance = (one - there) / (one - here) * (one - here / there)
        deviation = np.float32(eta) * np.sqrt(variance)
        arrived = np.sqrt(there) * clean + np.sqrt(one - there - deviation**2) * noise
        if eta > 0:
            arrived = arrived + deviation * torch.randn(sample.shape, generator=generator).numpy()
        arrived = torch.from_numpy(np.ascontiguousarray(arrived)).to(sample.dtype)
        return SimpleNamespace(prev_sample=arrived) if return_dict else (arrived,)

    def add_noise(self, original_samples, noise, timesteps):
        products = self.products[np.asarray(timesteps, dtype=np.int64)].reshape(-1, *[1] * (noise.ndim - 1))
        return torch.from_numpy(np.sqrt(products) * original_samples.numpy() + np.sqrt(np.float32(1) - products) * noise.numpy())
