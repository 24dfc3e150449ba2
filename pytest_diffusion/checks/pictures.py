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

MAX_SIDE = 160
"""Pixels: larger images are made smaller, and lose a little, so that a page stays below 2 MB."""


@dataclass(frozen=True)
class Picture:
    """Rows of images as data URIs, with a title, a caption for each column, and a note below.

    Images of a column stand above one another: two rows are two sides of the same thing.
    """

    title: str
    rows: list[list[str]]
    captions: list[str] = field(default_factory=list)
    note: str = ""
    is_strip: bool = False
    """Whether each row is one wide image."""
    sides: list[str] = field(default_factory=list)
    """What each row shows, where there are several."""

    @property
    def columns(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Caption of each column, and what is said of each of its images, with the image. Raises ValueError for rows of several lengths."""
        found = []
        for index, images in enumerate(zip(*self.rows, strict=True)):
            caption = self.captions[index] if index < len(self.captions) else ""
            said = [": ".join(filter(None, (side, caption))) or self.title for side in self.sides or [""] * len(images)]
            found.append((caption, list(zip(said, images, strict=True))))
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


Pictures = Callable[[Series], list[Picture]]
"""Makes the pictures of a check from its series; an empty list where it has none."""


def data_uri(image: torch.Tensor) -> str:
    """A data URI of a uint8 image (3, H, W): every pixel where it has at most 160 a side, else a smaller one, compressed with loss."""
    from PIL import Image

    return _uri(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), MAX_SIDE)


def grid_uri(images: torch.Tensor, *, columns: int) -> str:
    """A data URI of uint8 images (N, 3, H, W) side by side, in rows of `columns`, each as in `data_uri`."""
    import torch
    from PIL import Image

    count, channels, height, width = images.shape
    rows = -(-count // columns)
    filled = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    filled[:count] = images
    canvas = filled.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
    return _uri(Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy()), MAX_SIDE * max(columns, rows))


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
    rows = [series["originals"], series["round_trips"]]
    return [Picture("References, and the same after encode and decode", rows, sides=["reference", "after encode and decode"])]


def strengths(series: Series) -> list[Picture]:
    """A few seeds at each strength of a direction."""
    captions = [f"{strength:g}" for strength in series["strengths"]]
    return [Picture("The same seeds as the prompt's embedding goes from source to target", series["strip"], captions)]


def direction(series: Series) -> list[Picture]:
    """The same seeds with the source's and with the target's prompt."""
    source, target = series["prompts"]
    return [Picture(f"{source} → {target}, the same seeds", [series["sources"], series["targets"]], sides=[source, target])]


def real_and_generated(series: Series) -> list[Picture]:
    """Reference images above samples, of the same prompts where there are such pairs; none where they have another size."""
    if not series:
        return []
    rows, captions = [series["real"], series["generated"]], series["captions"]
    note = "The same prompts, none of them chosen." if captions else "The first of each, none of them chosen: they share no prompts."
    return [Picture("Real above, generated below", rows, captions, note, sides=["real", "generated"])]


def with_nearest(title: str, below: str) -> Pictures:
    """Pictures of `beside_nearest`'s series: what the title says above, and the nearest of the other side below."""

    def made(series: Series) -> list[Picture]:
        return [Picture(title, [series["images"], series["nearest"]], series["captions"], series["note"], sides=["", below])]

    return made


def _uri(picture: Image.Image, max_side: int) -> str:
    buffer = io.BytesIO()
    if max(picture.size) <= max_side:
        picture.save(buffer, "PNG", optimize=True)
        return _encoded(buffer)
    from PIL import features

    picture.thumbnail((max_side, max_side))
    kind = "webp" if features.check("webp") else "jpeg"
    picture.save(buffer, kind, quality=80)
    return _encoded(buffer, kind)


def _encoded(buffer: io.BytesIO, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
