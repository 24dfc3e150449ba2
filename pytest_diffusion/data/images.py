"""Images as uint8: the only rounding from floats, the only (antialiased) resizing, and the pixels of a file of any mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional as F

from pytest_diffusion.maths.tensors import require_finite

RESIZE_PROTOCOL = "bicubic, antialiased (torch), shorter side then centre crop"


def resize_images(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 images (N, 3, h, w) as uint8 (N, 3, height, width): shorter side scaled, then cropped at the centre."""
    if images.shape[-2:] == (height, width):
        return images
    scale = max(height / images.shape[-2], width / images.shape[-1])
    size = [max(height, round(images.shape[-2] * scale)), max(width, round(images.shape[-1] * scale))]
    resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[..., top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)


def as_uint8(images: Any, name: str) -> torch.Tensor:
    """Images as uint8 (N, 3, H, W) from uint8, or from floats in [0, 1] which are rounded once.

    Raises ValueError for another shape, for floats outside [0, 1] and for non-finite values: a wrong
    guess of the range would give a wrong figure.
    """
    tensor = torch.as_tensor(np.asarray(images) if not isinstance(images, torch.Tensor) else images)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        shape = f"{name} have shape {tuple(tensor.shape)}; expected (N, 3, H, W)."
        if tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4):
            shape += " The channels are last: use permute(0, 3, 1, 2)."
        if tensor.ndim == 4 and 4 in (tensor.shape[1], tensor.shape[-1]):
            shape += " A fourth channel is alpha: composite the images on a background first."
        raise ValueError(shape)
    if tensor.shape[1] == 1:
        tensor = tensor.expand(-1, 3, -1, -1)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} have dtype {tensor.dtype}; expected uint8, or floats in [0, 1].")
    require_finite(tensor, name)
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} are floats between {low:.3g} and {high:.3g}; expected [0, 1], or uint8 for 0 to 255.")
    return (tensor * 255).round().to(torch.uint8)


def rgb_pixels(image: Image.Image) -> tuple[NDArray[np.uint8], bool]:
    """Pixels (H, W, 3) of an image of any mode, upright, and whether some of them were transparent.

    16-bit greys are scaled to 8 bits; transparent pixels are composited on white. Raises ValueError for floats, whose range is unknown.
    """
    upright = ImageOps.exif_transpose(image) or image
    if upright.mode == "F":
        raise ValueError("its pixels are floats with an unknown range: save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        grey = (np.asarray(upright).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), False
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        background = Image.new("RGBA", upright.size, "white")
        transparent = int(np.asarray(with_alpha)[..., 3].min()) < 255
        return np.asarray(Image.alpha_composite(background, with_alpha).convert("RGB")).copy(), transparent
    return np.asarray(upright.convert("RGB")).copy(), False
