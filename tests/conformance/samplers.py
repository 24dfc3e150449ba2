"""Samplers with other interfaces, written from the papers: functions as in k-diffusion, and objects as in ADM."""

import math
from itertools import pairwise

import numpy as np
import torch


def derivative(sample, sigma, denoised):
    return (sample - denoised) / sigma


def sample_euler(model, x, sigmas, extra_args=None, disable=None):
    """Euler (arXiv:2206.00364)."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        x = x + (derivative(x, sigma, denoised) * (after - sigma)).to(x.dtype)
    return x


def sample_heun(model, x, sigmas, extra_args=None, disable=None):
    """Heun (arXiv:2206.00364, algorithm 1)."""
    for sigma, after in pairwise(sigmas):
        slope = derivative(x, sigma, model(x, sigma * x.new_ones(len(x)), **(extra_args or {})))
        there = x + (slope * (after - sigma)).to(x.dtype)
        if after > 0:
            other = derivative(there, after, model(there, after * x.new_ones(len(x)), **(extra_args or {})))
            there = x + ((slope + other) / 2 * (after - sigma)).to(x.dtype)
        x = there
    return x


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, disable=None):
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2)."""
    before, last = None, None
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        mixed = denoised
        if before is not None and after > 0:
            ratio = (math.log(last) - math.log(sigma)) / (math.log(sigma) - math.log(after))
            mixed = (1 + 1 / (2 * ratio)) * denoised - 1 / (2 * ratio) * before
        x = ((after / sigma) * x + (1 - after / sigma) * mixed).to(x.dtype)
        before, last = denoised, sigma
    return x


def sample_ancestral(model, x, sigmas, extra_args=None, disable=None, noise_sampler=None):
    """Euler with ancestral noise (arXiv:2206.00364, section 4)."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        up = math.sqrt(max(float(after**2 * (sigma**2 - after**2) / sigma**2), 0.0))
        down = math.sqrt(max(float(after**2) - up**2, 0.0))
        x = x + (derivative(x, sigma, denoised) * (down - sigma)).to(x.dtype)
        if after > 0:
            x = x + up * (noise_sampler(sigma, after) if noise_sampler is not None else torch.randn_like(x)).to(x)
    return x


def broadcast(sigma, x):
    """A sigma with the dimensions of the samples, as k-diffusion has them: its dtype counts."""
    return sigma[(...,) + (None,) * (x.ndim - sigma.ndim)]


def sample_euler_broadcast(model, x, sigmas):
    """Euler that draws for churn, and uses none of it by default."""
    for sigma, after in pairwise(sigmas):
        torch.randn_like(x)
        denoised = model(x, sigma * x.new_ones(len(x)))
        x = x + (x - denoised) / broadcast(sigma, x) * broadcast(after - sigma, x)
    return x


def sample_two_stage(model, x, sigmas, noise_sampler=None):
    """An SDE step with a stage half-way in log σ that starts, like the step, at x: DPM-Solver++(2S) with ancestral noise in both stages."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)))
        if after == 0:
            x = denoised
            continue
        middle = (sigma * after).sqrt()
        up = [(to**2 * (1 - to**2 / sigma**2)).sqrt() for to in (middle, after)]
        down = [(to**2 - added**2).sqrt() for to, added in zip((middle, after), up, strict=True)]
        stage = denoised + down[0] / sigma * (x - denoised) + up[0] * noise_sampler(sigma, middle)
        mixed = model(stage, middle * x.new_ones(len(x)))
        x = mixed + down[1] / sigma * (x - mixed) + up[1] * noise_sampler(sigma, after)
    return x


def sample_euler_too_far(model, x, sigmas, extra_args=None, disable=None):
    """Euler whose steps are a tenth too long."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)))
        x = x + (1.1 * derivative(x, sigma, denoised) * (after - sigma)).to(x.dtype)
    return x


def sample_heun_by_first_slope(model, x, sigmas, extra_args=None, disable=None):
    """Heun that evaluates the second slope, and leaves it unused: of order 1."""
    for sigma, after in pairwise(sigmas):
        slope = derivative(x, sigma, model(x, sigma * x.new_ones(len(x))))
        there = x + (slope * (after - sigma)).to(x.dtype)
        if after > 0:
            model(there, after * x.new_ones(len(x)))
        x = there
    return x


class GaussianDiffusion:
    """DDPM as ADM has it (arXiv:2102.09672): respaced betas, and one method for each sampler."""

    def __init__(self, count, total=1000):
        products = np.cumprod(1 - np.linspace(1e-4, 0.02, total))
        kept = np.linspace(0, total - 1, count).round().astype(int) if count > 1 else np.array([total - 1])
        self.alphas_cumprod = products[kept]
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.betas = 1 - self.alphas_cumprod / self.alphas_cumprod_prev
        self.num_timesteps = count

    def at(self, values, t, like):
        return torch.from_numpy(values)[t].float().view(-1, *[1] * (like.ndim - 1))

    def predicted(self, model, x, t):
        here = self.at(self.alphas_cumprod, t, x)
        return (x - (1 - here).sqrt() * model(x, t)) / here.sqrt()

    def p_sample(self, model, x, t):
        here, there = self.at(self.alphas_cumprod, t, x), self.at(self.alphas_cumprod_prev, t, x)
        beta = self.at(self.betas, t, x)
        clean = self.predicted(model, x, t)
        mean = beta * there.sqrt() / (1 - here) * clean + (1 - there) * (1 - beta).sqrt() / (1 - here) * x
        noise = torch.randn_like(x)
        nonzero = (t != 0).to(x).view(-1, *[1] * (x.ndim - 1))
        return {"sample": mean + nonzero * (beta * (1 - there) / (1 - here)).sqrt() * noise, "pred_xstart": clean}

    def ddim_sample(self, model, x, t, eta=0.0):
        here, there = self.at(self.alphas_cumprod, t, x), self.at(self.alphas_cumprod_prev, t, x)
        clean = self.predicted(model, x, t)
        noise = (x - here.sqrt() * clean) / (1 - here).sqrt()
        return {"sample": there.sqrt() * clean + (1 - there).sqrt() * noise, "pred_xstart": clean}


class TooLittleNoise(GaussianDiffusion):
    """The variance in place of its root."""

    def p_sample(self, model, x, t):
        here, there = self.at(self.alphas_cumprod, t, x), self.at(self.alphas_cumprod_prev, t, x)
        beta = self.at(self.betas, t, x)
        clean = self.predicted(model, x, t)
        mean = beta * there.sqrt() / (1 - here) * clean + (1 - there) * (1 - beta).sqrt() / (1 - here) * x
        nonzero = (t != 0).to(x).view(-1, *[1] * (x.ndim - 1))
        return {"sample": mean + nonzero * (beta * (1 - there) / (1 - here)) * torch.randn_like(x)}


class ArrayDDIM:
    """DDIM on NumPy arrays alone."""

    def __init__(self):
        self.products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def set_timesteps(self, count):
        self.timesteps = np.floor(np.linspace(999, 0, count + 1)).astype(int)[:-1]

    def product(self, timestep):
        return self.products[timestep]

    def step(self, output, timestep, sample):
        place = int(np.nonzero(self.timesteps == timestep)[0][0])
        here = self.product(timestep)
        there = self.product(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else 1.0
        clean = (sample - np.sqrt(1 - here) * output) / np.sqrt(here)
        return (np.sqrt(there) * clean + np.sqrt(1 - there) * output).astype(sample.dtype)

    def add_noise(self, image, noise, timesteps):
        product = self.products[timesteps].reshape(-1, 1, 1, 1)
        return np.sqrt(product) * image + np.sqrt(1 - product) * noise
