"""Noising of clean images by a scheduler, under either name of the method."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.conformance.calls import calling

IMAGE_SHAPE = (2, 3, 4, 4)


def noised(scheduler: Any, method: str, image: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Noised image from `add_noise` or `scale_noise`, which have their arguments in different orders. Raises Crash."""
    with calling(f"{method}(image, noise, {[round(float(value), 4) for value in timesteps]})", scheduler):
        if method == "scale_noise":
            got: torch.Tensor = scheduler.scale_noise(image, timesteps, noise)
        else:
            got = scheduler.add_noise(image, noise, timesteps)
        if not isinstance(got, torch.Tensor):
            raise TypeError(f"it returned {type(got).__name__}, expected a tensor")
    return got


def some_image() -> torch.Tensor:
    """Images (2, 3, 4, 4) in [-1, 1]."""
    return torch.rand(IMAGE_SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1
