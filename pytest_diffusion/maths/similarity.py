"""Similarity of two images: peak signal-to-noise ratio and structural similarity, as torchmetrics computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_diffusion.config.imports import import_past_torchvision

_WINDOW = 11
_AT_ONCE = 4
"""Images compared at a time: torchmetrics holds five filtered copies of them."""
_CEILING = 120.0


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, (N,), of float images (N, C, H, W) in [0, 1]; at most 120 dB, for equal images."""
    values = _of_pairs("peak_signal_noise_ratio", images.double(), others.double(), dim=(1, 2, 3))
    return torch.cat([one.reshape(-1) for one in values]).clamp(max=_CEILING)


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity, (N,), of float images (N, C, H, W) in [0, 1]: 1 for equal images, about 0 for unrelated ones.

    Gaussian window of 11 pixels and σ = 1.5, each channel separately, without the borders. Raises ValueError for
    images smaller than the window. Source: Wang et al. 2004, "Image quality assessment", section III.
    """
    if min(images.shape[-2:]) < _WINDOW:
        raise ValueError(f"images are {images.shape[-1]}x{images.shape[-2]}; SSIM needs at least {_WINDOW} pixels a side.")
    # The convolution is twenty times slower in float64, and float32 is within 2e-4 of it, even on flat images.
    found = _of_pairs("structural_similarity_index_measure", images.float(), others.float(), return_full_image=True)
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    # The mean of torchmetrics includes a border of reflected pixels.
    return torch.cat([full[..., inner, inner].double().flatten(1).mean(1) for _, full in found])


def _of_pairs(name: str, images: torch.Tensor, others: torch.Tensor, **arguments: Any) -> list[Any]:
    """Results of a torchmetrics function for batches of pairs."""
    module = import_past_torchvision("torchmetrics.functional.image", purpose="PSNR and SSIM", install="torchmetrics")
    function: Callable[..., Any] = getattr(module, name)
    batches = zip(images.split(_AT_ONCE), others.split(_AT_ONCE), strict=True)
    return [function(one, other, data_range=1.0, reduction="none", **arguments) for one, other in batches]
