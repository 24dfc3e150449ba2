"""References by name: image folders, prompt-image pairs, arrays, statistics, hub data sets and callables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from pytest_diffusion.config.sources import ReferenceSource, load_source, source_of
from pytest_diffusion.data.files import BLOCK, ImageRows, image_blocks, open_image, require_size
from pytest_diffusion.data.hub import why
from pytest_diffusion.data.images import as_uint8, resize_images, rgb_pixels
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.data.rows import read_rows
from pytest_diffusion.maths.feature_statistics import UNREADABLE, FeatureStatistics
from pytest_diffusion.verdicts.errors import NotApplicable, SetupError

_OPTION = "--diffusion-reference"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_CAPTIONS = ("prompt", "caption", "text")
_KNOWN = {*_CAPTIONS, "image", "file_name", "mask", "words"}


@dataclass(frozen=True)
class Reference:
    """Real images, uint8 (M, 3, H, W), or statistics of their features; `prompts` where each image has one."""

    name: str
    images: torch.Tensor | None = None
    statistics: FeatureStatistics | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of source images by size before resizing, as "512x512"."""
    prompts: list[str] | None = None
    labels: tuple[str, ...] = ()
    """Name of each image: its file, or its position in the data set."""
    alpha: tuple[int, ...] = ()
    """Indices of images with transparent pixels, which were composited on white."""
    cmyk: tuple[int, ...] = ()
    """Indices of images with colours for print (CMYK), which have no exact counterpart in RGB."""
    masks: torch.Tensor | None = None
    """bool (M, H, W), True where the object is that `words` name; None for a reference without masks."""
    words: tuple[tuple[str, ...], ...] = ()
    """Words of each image's prompt that name the object in its mask."""
    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Other columns of the table that the images come from, one value for each image; None where a row has none."""

    def require_images(self) -> torch.Tensor:
        """The images. Raises NotApplicable for a reference that holds only statistics."""
        if self.images is None:
            raise NotApplicable("the reference is a file of statistics and holds no images.")
        return self.images

    def label(self, index: int) -> str:
        """Name of an image in messages."""
        return self.labels[index] if index < len(self.labels) else f"image {index}"


class _Row(NamedTuple):
    label: str
    image: Image.Image
    prompt: str | None
    mask: Image.Image | None = None
    words: tuple[str, ...] = ()
    values: Mapping[str, str] = MappingProxyType({})


def load_reference(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The reference that `--diffusion-reference` names, resized to the samples' size; at most `limit` images.

    Raises SetupError for a folder without images, a corrupt file (named), a row without an image (named by
    line), or a callable that returns no images.
    """
    reference: Reference = load_source("reference", name, height=height, width=width, limit=limit)
    return reference


def num_reference_images(name: str, num_samples: int) -> int:
    """Number of reference images to read: the number of samples, at least the minimum of the reference's source."""
    source = source_of("reference", name)
    return max(num_samples, source.images if isinstance(source, ReferenceSource) else 10_000)


def pair_prompts(name: str | None) -> list[str] | None:
    """Prompts of a `.jsonl` or `.csv` of pairs, in order; None for another reference or where a row has none."""
    path = Path(name or "")
    if path.suffix not in (".jsonl", ".csv") or not path.is_file():
        return None
    prompts = [_prompt(row) for _, row in read_rows(path, _OPTION)]
    return [prompt for prompt in prompts if prompt] if prompts and all(prompts) else None


def load_demo(name: str, *, height: int, width: int, limit: int) -> Reference:
    """Newly rendered scenes of the demo, always 32x32."""
    from pytest_diffusion.demo import reference_captions, reference_images, reference_masks

    masks, words = reference_masks(limit)
    return Reference("demo", reference_images(limit), None, {"32x32": limit}, reference_captions(limit), masks=masks, words=tuple(words))


def load_digits(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The 1,797 grey 8x8 digits of scikit-learn, resized."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().images[:limit] * (255 / 16)).round().to(torch.uint8)
    return _resized("digits", grey[:, None].repeat(1, 3, 1, 1), height, width)


def load_folder(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The images below a folder, in the order of their names."""
    return _gather(name, _folder(Path(name)), height, width, limit)


def load_pairs(name: str, *, height: int, width: int, limit: int) -> Reference:
    """Images and prompts of a `.jsonl` or `.csv`, with masks and words where it has them."""
    return _gather(name, _pairs(Path(name)), height, width, limit)


def load_hub(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The first images of a data set of the hub, streamed."""
    return _gather(name, _hub(name, limit), height, width, limit)


def load_callable(name: str, *, height: int, width: int, limit: int) -> Reference:
    """The images that `package.module:callable` returns or is."""
    images = load_object(name, _OPTION)
    try:
        found = images() if callable(images) else images
    except Exception as error:  # code of the user's may raise anything
        raise SetupError(f"{_OPTION}: {name} failed: {type(error).__name__}: {error}") from error
    try:
        return _resized(name, as_uint8(found, f"images of {name}")[:limit], height, width)
    except (TypeError, ValueError) as error:
        raise SetupError(f"{_OPTION}: {name} gives no images: {error}") from error


def _gather(name: str, rows: Iterable[_Row], height: int, width: int, limit: int) -> Reference:
    with ImageRows() as images:
        return _gathered(name, rows, images, height, width, limit)


def _gathered(name: str, rows: Iterable[_Row], images: ImageRows, height: int, width: int, limit: int) -> Reference:
    prompts, labels = list[str | None](), list[str]()
    sizes, alpha, cmyk, masks = dict[str, int](), list[int](), list[int](), list[torch.Tensor]()
    words, values = list[tuple[str, ...]](), list[Mapping[str, str]]()
    for row in rows:
        if images.count == limit:
            break
        try:
            require_size(row.image.size, row.label)
            pixels, transparent = rgb_pixels(row.image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise SetupError(f"{_OPTION}: {row.label} cannot be read as an image: {error}") from error
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        sizes[size] = sizes.get(size, 0) + 1
        if transparent:
            alpha.append(images.count)
        if row.image.mode == "CMYK":
            cmyk.append(images.count)
        images.add(resize_images(torch.from_numpy(pixels).permute(2, 0, 1)[None], height, width)[0])
        prompts.append(row.prompt)
        labels.append(row.label)
        words.append(row.words)
        values.append(row.values)
        if row.mask is not None:
            masks.append(_mask(row, row.mask, pixels.shape[:2], height, width))
    if not images.count:
        raise SetupError(f"{_OPTION}: {name} holds no images ({', '.join(sorted(_SUFFIXES))}).")
    known = [prompt for prompt in prompts if prompt]
    if masks and (len(masks) < images.count or not all(words) or len(known) < images.count):
        raise SetupError(f"{_OPTION}: {name}: with masks, every row needs 'mask', 'words' and a prompt.")
    captions = known if len(known) == images.count else None
    return Reference(
        name,
        images.mapped(),
        None,
        sizes,
        captions,
        tuple(labels),
        tuple(alpha),
        tuple(cmyk),
        torch.stack(masks) if masks else None,
        tuple(words) if masks else (),
        {name: [row.get(name) for row in values] for name in dict.fromkeys(key for row in values for key in row)},
    )


def _mask(row: _Row, mask: Image.Image, size: tuple[int, ...], height: int, width: int) -> torch.Tensor:
    """Mask, bool (height, width), rotated, scaled and cropped like its image. Raises SetupError where its shape or words do not fit."""
    pixels = np.array((ImageOps.exif_transpose(mask) or mask).convert("L"))
    if abs(pixels.shape[0] * size[1] - pixels.shape[1] * size[0]) > max(*pixels.shape, *size):
        shown = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{size[1]}x{size[0]}"
        raise SetupError(f"{_OPTION}: the mask of {row.label} is {shown[0]}, its image {shown[1]}: they need the same shape.")
    said = (row.prompt or "").casefold()
    if unsaid := [word for word in row.words if word.casefold() not in said]:
        raise SetupError(f"{_OPTION}: {row.label}: the word {unsaid[0]!r} is not in its prompt {row.prompt!r}.")
    return resize_images(torch.from_numpy(pixels)[None, None], height, width)[0, 0] > 127


def _folder(folder: Path) -> Iterator[_Row]:
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.is_dir()):
        yield _Row(str(file), open_image(file, str(file)), None)


def _pairs(path: Path) -> Iterator[_Row]:
    for number, row in read_rows(path, _OPTION):
        image = row.get("image") or row.get("file_name")
        if not isinstance(image, str) or not image.strip():
            raise SetupError(f"{_OPTION}: {path}, line {number} has no 'image'.")
        mask, words = row.get("mask"), str(row.get("words") or "")
        yield _Row(
            image,
            open_image(path.parent / image, f"{path}, line {number}: {image}"),
            _prompt(row),
            open_image(path.parent / mask, f"{path}, line {number}: {mask}") if isinstance(mask, str) and mask.strip() else None,
            tuple(words.split()),
            _values(row),
        )


def _values(row: Mapping[str, Any]) -> dict[str, str]:
    """The values of a row by which it may be sliced: words, numbers and truth values, of columns that mean nothing else."""
    return {name: str(value) for name, value in row.items() if name not in _KNOWN and isinstance(value, str | int | float)}


def _prompt(row: dict[str, Any]) -> str | None:
    return next((row[key].strip() for key in _CAPTIONS if isinstance(row.get(key), str) and row[key].strip()), None)


def _hub(name: str, limit: int) -> Iterator[_Row]:
    import datasets

    match = re.fullmatch(r"hf:([^\[\]]+)(?:\[(.+)\])?", name)
    if match is None:
        raise SetupError(f"{_OPTION} is {name!r}; expected hf:name or hf:name[split].")
    try:
        stream = datasets.load_dataset(match[1], split=match[2] or "train", streaming=True)
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{_OPTION}: {name} cannot be loaded: {why(error)}") from error
    for number, row in enumerate(stream.take(limit)):
        picture = next((value for value in row.values() if isinstance(value, Image.Image)), None)
        if picture is None:
            raise SetupError(f"{_OPTION}: rows of {name} have no image column (columns: {', '.join(row)}).")
        yield _Row(f"row {number} of {name}", picture, _prompt(row), values=_values(row))


def load_arrays(name: str, *, height: int, width: int, limit: int) -> Reference:
    """Images of an `.npz` (uint8 (N, H, W, 3), as ADM's `arr_0`), or its statistics where it holds no images."""
    path = Path(name)
    try:
        reference = _stored(str(path), _blocks_of(path, limit), height, width)
        return reference or Reference(str(path), statistics=FeatureStatistics.load(path))
    except UNREADABLE as error:
        said = str(error)
        shown = said if said.startswith((str(path), f"images of {path}")) else f"{path} cannot be read as an .npz of plain arrays: {said}"
        raise SetupError(f"{_OPTION}: {shown}") from error


def _blocks_of(path: Path, limit: int) -> Iterator[torch.Tensor]:
    """Images of an `.npz`, uint8 (n, 3, h, w), a few at a time."""
    for block in image_blocks(path, limit):
        tensor = torch.from_numpy(block)
        yield as_uint8(tensor.permute(0, 3, 1, 2) if tensor.shape[-1] in (1, 3) else tensor, f"images of {path}")


def _resized(name: str, images: torch.Tensor, height: int, width: int) -> Reference:
    """Reference of images, uint8 (N, 3, h, w). Raises ValueError where there are none."""
    reference = _stored(name, images.split(BLOCK), height, width)
    if reference is None:
        raise ValueError(f"{name} holds no images")
    return reference


def _stored(name: str, blocks: Iterable[torch.Tensor], height: int, width: int) -> Reference | None:
    """Reference of images that come a few at a time, resized and mapped from a file; None where none come."""
    sizes: dict[str, int] = {}
    with ImageRows() as images:
        for block in blocks:
            size = f"{block.shape[-1]}x{block.shape[-2]}"
            sizes[size] = sizes.get(size, 0) + len(block)
            for image in resize_images(block, height, width):
                images.add(image)
        return Reference(name, images.mapped(), sizes=sizes) if images.count else None
