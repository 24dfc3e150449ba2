"""Figures of samples in a training loop, over any number of processes.

    torchrun --nproc-per-node=2 examples/training_metrics.py

A small denoiser learns the digits of scikit-learn. Now and then each process draws its share of the samples, and the metric joins
them: the figure, and its interval, are those of all samples together.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from sklearn.datasets import load_digits

from pytest_diffusion.torchmetrics import FrechetDistance

SAMPLES, SHOWN = 256, 20


class Denoiser(torch.nn.Module):
    """The noise of 64 pixels at a timestep, by three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(65, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64)
        )

    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise (N, 64) in pixels (N, 64) at timesteps (N,)."""
        output: torch.Tensor = self.layers(torch.cat([pixels, timesteps[:, None] / 1000], 1))
        return output


@torch.no_grad()
def drawn(model: torch.nn.Module, seeds: list[int]) -> torch.Tensor:
    """A sample (64,) from each seed, so that it does not matter which process draws it."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    pixels = torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    for timestep in scheduler.timesteps:
        pixels = scheduler.step(model(pixels, timestep.expand(len(pixels))), timestep, pixels).prev_sample
    return pixels


def main() -> None:
    """Train, and print the figure as it falls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    model, scheduler = Denoiser(), DDIMScheduler()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    metric = FrechetDistance(given_reference=True)
    for step in range(1, steps + 1):
        # Every process takes the same batches here, so that one and two processes train the same model.
        batch = images[torch.randint(len(images), (128,))]
        noise, timesteps = torch.randn_like(batch), torch.randint(1000, (len(batch),))
        loss = (model(scheduler.add_noise(batch, noise, timesteps), timesteps) - noise).square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step % SHOWN == 0:
            rank, count = accelerator.process_index, accelerator.num_processes
            metric.reset()
            metric.update(drawn(model, list(range(rank, SAMPLES, count))), real=False)
            metric.update(images[rank::count], real=True)
            value = float(metric.compute())  # joins what all processes have
            low, high = metric.interval
            accelerator.print(f"step {step}: Fréchet distance {value:.4g} [{low:.4g}, {high:.4g}] of {SAMPLES} samples")


if __name__ == "__main__":
    main()
