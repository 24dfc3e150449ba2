"""How alike two images are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5
_AT_ONCE = 4
"""Images of which float64 copies are held: a convolution lays out its windows, eleven times the pictures."""


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, (N,), of float images (N, C, H, W) in [0, 1]; at most 120 dB, for equal images."""
    batches = zip(images.split(_AT_ONCE), others.split(_AT_ONCE), strict=True)
    errors = torch.cat([(first.double() - second.double()).square().mean((1, 2, 3)) for first, second in batches])
    return -10 * errors.clamp(min=1e-12).log10()


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity, (N,), of float images (N, C, H, W) in [0, 1]: 1 for equal images, about 0 for unrelated ones.

    Gaussian window of 11 pixels and σ = 1.5, each channel on its own, borders left out. Raises ValueError for
    images smaller than the window. Source: Wang et al. 2004, "Image quality assessment", section III.
    """
    if min(images.shape[-2:]) < _WINDOW:
        raise ValueError(f"images are {images.shape[-1]}x{images.shape[-2]}; SSIM needs at least {_WINDOW} pixels a side.")
    axis = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-axis.square() / (2 * _SIGMA**2))
    line = line / line.sum()
    batches = zip(images.split(_AT_ONCE), others.split(_AT_ONCE), strict=True)
    return torch.cat([_ssim(first.double(), second.double(), line) for first, second in batches])


def _ssim(first: torch.Tensor, second: torch.Tensor, line: torch.Tensor) -> torch.Tensor:
    across = line.expand(first.shape[1], 1, 1, _WINDOW)

    def smooth(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, across, groups=len(across)), across.mT, groups=len(across))

    means = smooth(first), smooth(second)
    variances = smooth(first * first) - means[0] ** 2, smooth(second * second) - means[1] ** 2
    covariance = smooth(first * second) - means[0] * means[1]
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    contrast = (2 * covariance + c2) / (variances[0] + variances[1] + c2)
    return (luminance * contrast).mean((1, 2, 3))
