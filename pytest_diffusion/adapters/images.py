"""Images from files and callables as one uint8 tensor, and the one antialiased path that resizes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pytest_diffusion.adapters.objects import load_object
from pytest_diffusion.errors import ModelError
from pytest_diffusion.maths.frechet import FeatureStatistics

RESIZE_PROTOCOL = "bicubic, antialiased (torch), shorter side then centre crop"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Reference:
    """Real images, uint8 (M, 3, H, W), or statistics of their features; `masks` of objects where they are known."""

    name: str
    images: torch.Tensor | None = None
    statistics: FeatureStatistics | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    """How many source images had each size, as "512x512": the resolution before resizing."""


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

    Raises ValueError for another shape, for floats outside [0, 1] and for non-finite values: a guess at the
    range would be a guess at the figure.
    """
    tensor = torch.as_tensor(np.asarray(images) if not isinstance(images, torch.Tensor) else images)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; expected (N, 3, H, W).")
    if tensor.shape[1] == 1:
        tensor = tensor.expand(-1, 3, -1, -1)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} have dtype {tensor.dtype}; expected uint8, or floats in [0, 1].")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} are floats between {low:.3g} and {high:.3g}; expected [0, 1], or uint8 for 0 to 255.")
    return (tensor * 255).round().to(torch.uint8)


def load_reference(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The reference that `--diffusion-reference` names, resized to the samples' size; at most `limit` images.

    Raises ModelError for a folder without images, a corrupt file (named) or a callable that returns
    something else.
    """
    if name == "demo":
        from pytest_diffusion.demo import reference_images

        return Reference("demo", reference_images(limit), sizes={"32x32": limit})
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, height, width, limit)
    if path.suffix == ".npz":
        return Reference(name, statistics=FeatureStatistics.load(path))
    if name.startswith("hf:"):
        return _from_hub(name, height, width, limit)
    images = load_object(name, "--diffusion-reference")
    return _resized(name, as_uint8(images() if callable(images) else images, f"images of {name}")[:limit], height, width)


def _from_folder(folder: Path, height: int, width: int, limit: int) -> Reference:
    from PIL import Image, UnidentifiedImageError

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)[:limit]
    if not files:
        raise ModelError(f"--diffusion-reference: {folder} holds no images ({', '.join(sorted(_SUFFIXES))}).")
    images, sizes = [], dict[str, int]()
    for file in files:
        try:
            with Image.open(file) as opened:
                array = np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise ModelError(f"--diffusion-reference: {file} cannot be read as an image: {error}") from error
        size = f"{array.shape[1]}x{array.shape[0]}"
        sizes[size] = sizes.get(size, 0) + 1
        images.append(resize_images(torch.from_numpy(array.copy()).permute(2, 0, 1)[None], height, width))
    return Reference(str(folder), torch.cat(images), sizes=sizes)


def _from_hub(name: str, height: int, width: int, limit: int) -> Reference:
    import datasets

    match = re.fullmatch(r"hf:([^\[\]]+)(?:\[(.+)\])?", name)
    if match is None:
        raise ModelError(f"--diffusion-reference is {name!r}; expected hf:name or hf:name[split].")
    stream = datasets.load_dataset(match[1], split=match[2] or "train", streaming=True)
    images, sizes = [], dict[str, int]()
    for row in stream.take(limit):
        picture = next((value for value in row.values() if hasattr(value, "convert")), None)
        if picture is None:
            raise ModelError(f"--diffusion-reference: rows of {name} have no image column (columns: {', '.join(row)}).")
        array = np.asarray(picture.convert("RGB"))
        size = f"{array.shape[1]}x{array.shape[0]}"
        sizes[size] = sizes.get(size, 0) + 1
        images.append(resize_images(torch.from_numpy(array.copy()).permute(2, 0, 1)[None], height, width))
    if not images:
        raise ModelError(f"--diffusion-reference: {name} is empty.")
    return Reference(name, torch.cat(images), sizes=sizes)


def _resized(name: str, images: torch.Tensor, height: int, width: int) -> Reference:
    return Reference(name, resize_images(images, height, width), sizes={f"{images.shape[-1]}x{images.shape[-2]}": len(images)})
