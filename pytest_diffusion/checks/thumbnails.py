"""Images as data URIs, small enough to travel in a verdict."""

from __future__ import annotations

import base64
import io

import torch

MAX_SIDE = 192


def data_uri(image: torch.Tensor) -> str:
    """A PNG data URI of a uint8 image (3, H, W), at most 192 pixels a side."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid_uri(images: torch.Tensor, *, columns: int) -> str:
    """A PNG data URI of uint8 images (N, 3, H, W) side by side, in rows of `columns`."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    filled = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    filled[:count] = images
    canvas = filled.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
