"""Pictures in the report: galleries that a check makes of its series, and images small enough to travel in a verdict."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_diffusion.verdicts.drawing import Series

if TYPE_CHECKING:
    import torch
    from PIL import Image

MAX_SIDE = 192


@dataclass(frozen=True)
class Picture:
    """Rows of images as data URIs, with a title, a caption for each column, and a note below."""

    title: str
    rows: list[list[str]]
    captions: list[str] = field(default_factory=list)
    note: str = ""
    is_strip: bool = False
    """Whether each row is one wide image."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


Pictures = Callable[[Series], list[Picture]]
"""Makes the pictures of a check from its series; an empty list where it has none."""


def data_uri(image: torch.Tensor) -> str:
    """A PNG data URI of a uint8 image (3, H, W), at most 192 pixels a side."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return _uri(picture)


def grid_uri(images: torch.Tensor, *, columns: int) -> str:
    """A PNG data URI of uint8 images (N, 3, H, W) side by side, in rows of `columns`."""
    import torch
    from PIL import Image

    count, channels, height, width = images.shape
    rows = -(-count // columns)
    filled = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    filled[:count] = images
    canvas = filled.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return _uri(Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy()))


def picture_uri(figure: Any) -> str:
    """A PNG data URI of a matplotlib figure, or of a uint8 tensor (3, H, W). Raises TypeError for anything else."""
    if hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        return _encoded(buffer)
    if hasattr(figure, "permute") and getattr(figure, "ndim", 0) == 3:
        return data_uri(figure)
    raise TypeError(f"A figure for the report is a matplotlib Figure or a uint8 tensor (3, H, W); got {type(figure).__name__}.")


def gallery(images: torch.Tensor, captions: list[str], *, count: int = 24) -> Picture:
    """The first samples of a run, uint8 (N, 3, H, W), none of them chosen."""
    shown = [data_uri(image) for image in images[:count]]
    return Picture("Samples", [shown], captions[: len(shown)], "The first samples of the run, none of them chosen.")


def worst_by_score(series: Series) -> list[Picture]:
    """Samples with the lowest CLIP scores."""
    return [Picture("Worst samples by CLIP score", [series["images"]], series["captions"], "The prompt of each, and its score.")]


def slerp_strip(series: Series) -> list[Picture]:
    """Decoded frames of one path."""
    return [Picture("Spherical interpolation between two references", [[series["strip"]]], is_strip=True)]


def round_trips(series: Series) -> list[Picture]:
    """References above, and below what encoding and decoding made of them."""
    return [Picture("References, and the same after encode and decode", [series["originals"] + series["round_trips"]])]


def strengths(series: Series) -> list[Picture]:
    """A few seeds at each strength of a direction."""
    captions = [f"{strength:g}" for strength in series["strengths"]]
    return [Picture("The same seeds as the prompt's embedding goes from source to target", series["strip"], captions)]


def direction(series: Series) -> list[Picture]:
    """The same seeds with the source's and with the target's prompt."""
    source, target = series["prompts"]
    return [Picture(f"{source} → {target}, the same seeds", [series["sources"] + series["targets"]])]


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _encoded(buffer)


def _encoded(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
