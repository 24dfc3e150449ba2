"""Closed-form denoisers: time for a step, how it grows with the data, and memory, against a straightforward implementation.

    python -m benchmarks.analytic [--images 5000] [--steps 20]

`optimal` and `pca_locality` on random 32x32 RGB images, batch 16. The straightforward side forms all differences
of samples and images at once; for `pca_locality`, one pixel after the other.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.timing import cpu_seconds, row
from pytest_diffusion import create_model
from pytest_diffusion.models.levels import NoiseLevel

BATCH, SHAPE = 16, (3, 32, 32)
LEVEL = NoiseLevel.of_ratio(1.0)


def smooth_images(count: int) -> torch.Tensor:
    """Random images with the correlations of photographs: white noise through a wide blur, (N, 3, 32, 32) in [-1, 1]."""
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3)
    return (3 * blurred).clamp(-1, 1)


def plain_optimal(images: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    gaps = (sample.flatten(1)[:, None] - LEVEL.alpha.float() * images.flatten(1)[None]).square().sum(2)
    return (-gaps.double() / (2 * LEVEL.sigma**2)).softmax(1).float() @ images.flatten(1)


def plain_locality(images: torch.Tensor, sample: torch.Tensor, masks: torch.Tensor, pixels: int) -> torch.Tensor:
    """The first `pixels` pixels, each by its own masked distances."""
    gaps = (sample.flatten(1)[:, None] - LEVEL.alpha.float() * images.flatten(1)[None]).square()
    found = [(-(gaps @ masks[pixel]) / (2 * LEVEL.sigma.float() ** 2)).softmax(1) @ images.flatten(1)[:, pixel] for pixel in range(pixels)]
    return torch.stack(found, 1)


def high_water() -> float:
    """Peak resident memory of this process in MB (Linux)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    sample = torch.randn(BATCH, *SHAPE)
    for name in ("optimal", "pca_locality"):
        for count in (options.images // 4, options.images // 2, options.images):
            model = create_model(name, smooth_images(count))
            model.posterior_mean(sample, LEVEL)
            seconds = cpu_seconds(lambda model=model: model.posterior_mean(sample, LEVEL))
            print(f"{name}, one step, {count} images: {seconds:.2f} CPU-s", flush=True)
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        model.sample(BATCH, batch_size=BATCH, num_inference_steps=options.steps, generator=torch.Generator().manual_seed(0))
        wall = time.perf_counter() - start
        row(f"{name}, {options.steps} steps, peak memory in GB", high_water() / 1024, "<= 3", high_water() <= 3072, f"{wall:.0f} s")
    images = smooth_images(options.images // 4)
    optimal, local = create_model("optimal", images), create_model("pca_locality", images)
    ours, theirs = (cpu_seconds(work) for work in (lambda: optimal.posterior_mean(sample, LEVEL), lambda: plain_optimal(images, sample)))
    row(f"optimal over a straightforward one, {len(images)} images", theirs / ours, "> 1", theirs > ours)
    pixels, masks = 32, local.masks(LEVEL)
    plain = cpu_seconds(lambda: plain_locality(images, sample, masks, pixels)) / pixels * masks.shape[0]
    ours = cpu_seconds(lambda: local.posterior_mean(sample, LEVEL))
    row(f"pca_locality over a straightforward one, {len(images)} images", plain / ours, "> 1", plain > ours, f"from {pixels} pixels")


if __name__ == "__main__":
    main()
